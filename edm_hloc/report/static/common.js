// What the page of a run and that of a mesh have in common: data in base64, and a view in 3D.
const common = {
  VIEWS: { overview: [0.45, 0.4, 1], front: [0, 0.06, 1], side: [1, 0.1, 0.15], top: [0, 1, 0.001] },

  bytes(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  },

  // A renderer whose canvas is the first thing on the stage; null in a browser without WebGL.
  makeRenderer(stage, label) {
    let renderer;
    try {
      renderer = new THREE.WebGLRenderer({ antialias: true, powerPreference: "high-performance" });
    } catch (error) {
      return null;
    }
    THREE.ColorManagement.enabled = false; // colours as they are in the photos
    renderer.outputColorSpace = THREE.LinearSRGBColorSpace;
    renderer.setPixelRatio(Math.min(devicePixelRatio || 1, 2));
    const canvas = renderer.domElement;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", label);
    stage.prepend(canvas);
    return renderer;
  },
};
