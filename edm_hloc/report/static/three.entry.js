// What the report's 3D view needs of three.js; README.md says how three.min.js is made of it.
export {
  BufferAttribute, BufferGeometry, CanvasTexture, Color, ColorManagement, DoubleSide,
  LinearSRGBColorSpace, LineBasicMaterial, LineSegments, Mesh, MeshBasicMaterial,
  PerspectiveCamera, Points, PointsMaterial, Scene, Texture, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
