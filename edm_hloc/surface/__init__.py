"""From matches and a model to a surface: samples, an oriented cloud of points, a mesh, its file."""
