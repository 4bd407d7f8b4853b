"""Random worlds with exact geometry: training pairs, the demo scene, tests."""
