// The page of a mesh: reads the glTF file in it, as surface/glb.py writes it, and shows it.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const stage = $("stage");

  function fail(text) {
    const note = document.createElement("p");
    note.textContent = text;
    stage.replaceChildren(note);
    document.documentElement.dataset.ready = "failed";
  }

  // ------------------------------------------------------------------ the file

  function opened(data) {
    const words = new DataView(data.buffer);
    const length = words.getUint32(12, true);
    const document = JSON.parse(new TextDecoder().decode(data.subarray(20, 20 + length)));
    const start = 28 + length;
    const part = (view) => [start + view.byteOffset, view.byteLength];
    const KINDS = { 5126: Float32Array, 5123: Uint16Array, 5125: Uint32Array };
    const SIZES = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
    return {
      document,
      values(number) {
        const accessor = document.accessors[number];
        const [offset, size] = part(document.bufferViews[accessor.bufferView]);
        const Kind = KINDS[accessor.componentType];
        return [new Kind(data.buffer, offset, size / Kind.BYTES_PER_ELEMENT), SIZES[accessor.type]];
      },
      picture(texture) {
        const image = document.images[document.textures[texture].source];
        const [offset, size] = part(document.bufferViews[image.bufferView]);
        return createImageBitmap(new Blob([data.subarray(offset, offset + size)], { type: image.mimeType }));
      },
    };
  }

  const srgb = (value) => (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055);

  // ------------------------------------------------------------------ the scene

  async function made(file, renderer) {
    const parts = [];
    for (const primitive of file.document.meshes[0].primitives) {
      const geometry = new THREE.BufferGeometry();
      const attribute = (name, number) => {
        const [values, size] = file.values(number);
        geometry.setAttribute(name, new THREE.BufferAttribute(values, size));
      };
      attribute("position", primitive.attributes.POSITION);
      geometry.setIndex(new THREE.BufferAttribute(file.values(primitive.indices)[0], 1));
      const described = file.document.materials[primitive.material];
      const material = new THREE.MeshBasicMaterial(described.doubleSided ? { side: THREE.DoubleSide } : {});
      const texture = described.pbrMetallicRoughness.baseColorTexture;
      if (texture) {
        attribute("uv", primitive.attributes.TEXCOORD_0);
        material.map = new THREE.Texture(await file.picture(texture.index));
        material.map.flipY = false;
        material.map.anisotropy = renderer.capabilities.getMaxAnisotropy();
        material.map.needsUpdate = true;
      } else { // glTF's colours of vertices are linear
        const values = file.values(primitive.attributes.COLOR_0)[0];
        const colours = new Float32Array((values.length / 4) * 3);
        for (let i = 0; i < colours.length; i++) colours[i] = srgb(values[4 * Math.floor(i / 3) + (i % 3)] / 65535);
        geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
        material.vertexColors = true;
      }
      parts.push(new THREE.Mesh(geometry, material));
    }
    return parts;
  }

  // Grey meshes in the light of one lamp. Vertices at one place, as on both sides of a seam, have
  // one normal.
  function shaded(parts) {
    const places = new Map(), sums = [];
    const own = parts.map((part) => {
      const xyz = part.geometry.getAttribute("position").array;
      const rows = new Uint32Array(xyz.length / 3);
      for (let i = 0; i < rows.length; i++) {
        const key = `${xyz[3 * i]},${xyz[3 * i + 1]},${xyz[3 * i + 2]}`;
        let row = places.get(key);
        if (row === undefined) { places.set(key, (row = places.size)); sums.push(0, 0, 0); }
        rows[i] = row;
      }
      return rows;
    });
    parts.forEach((part, k) => {
      const xyz = part.geometry.getAttribute("position").array, index = part.geometry.getIndex().array;
      for (let t = 0; t < index.length; t += 3) {
        const [a, b, c] = [index[t], index[t + 1], index[t + 2]];
        const u = [0, 1, 2].map((i) => xyz[3 * b + i] - xyz[3 * a + i]);
        const v = [0, 1, 2].map((i) => xyz[3 * c + i] - xyz[3 * a + i]);
        const normal = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
        for (const corner of [a, b, c]) for (let i = 0; i < 3; i++) sums[3 * own[k][corner] + i] += normal[i];
      }
    });
    const lamp = new THREE.Vector3(-0.7, 0.6, 0.4).normalize(); // from the side, which shows relief
    return parts.map((part, k) => {
      const geometry = new THREE.BufferGeometry();
      geometry.setAttribute("position", part.geometry.getAttribute("position"));
      geometry.setIndex(part.geometry.getIndex());
      const colours = new Float32Array(3 * own[k].length);
      own[k].forEach((row, i) => {
        const [x, y, z] = [sums[3 * row], sums[3 * row + 1], sums[3 * row + 2]];
        const light = (x * lamp.x + y * lamp.y + z * lamp.z) / (Math.hypot(x, y, z) || 1);
        colours.fill(0.12 + 0.8 * (0.5 + 0.5 * light) ** 2, 3 * i, 3 * i + 3);
      });
      geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
      return new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ vertexColors: true, side: part.material.side }));
    });
  }

  // The middle of the vertices, and how far the view must reach: single pieces far outside count not.
  function extent(parts) {
    const columns = [[], [], []];
    for (const part of parts) {
      const xyz = part.geometry.getAttribute("position").array;
      const step = Math.max(1, Math.floor(xyz.length / 3 / 20000));
      for (let i = 0; i < xyz.length / 3; i += step) columns.forEach((column, k) => column.push(xyz[3 * i + k]));
    }
    const ends = columns.map((column) => {
      column.sort((a, b) => a - b);
      return [column[Math.floor(0.03 * column.length)], column[Math.ceil(0.97 * (column.length - 1))]];
    });
    const middle = new THREE.Vector3(...ends.map(([low, high]) => (low + high) / 2));
    return [middle, Math.hypot(...ends.map(([low, high]) => high - low)) / 2 || 1];
  }

  // ------------------------------------------------------------------ the viewer

  async function show() {
    const renderer = common.makeRenderer(stage, "3D view of the mesh. Drag to turn it, arrow keys to move it.");
    if (!renderer) {
      fail("This browser cannot draw in 3D (no WebGL).");
      return;
    }
    const parts = await made(opened(common.bytes($("mesh-data").textContent)), renderer);
    const canvas = renderer.domElement;
    const scene = new THREE.Scene();
    scene.add(...parts);
    const [middle, radius] = extent(parts);
    const eye = new THREE.PerspectiveCamera(45, 1, radius / 500, radius * 100);
    const controls = new THREE.OrbitControls(eye, canvas);
    controls.zoomToCursor = true;
    controls.listenToKeyEvents(canvas);

    let asked = false;
    function render() {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; renderer.render(scene, eye); });
    }
    controls.addEventListener("change", render);
    function resize() {
      const { clientWidth, clientHeight } = stage;
      if (!clientWidth || !clientHeight) return;
      renderer.setSize(clientWidth, clientHeight, false);
      eye.aspect = clientWidth / clientHeight;
      eye.updateProjectionMatrix();
      render();
    }
    new ResizeObserver(resize).observe(stage);
    resize();

    function stand(direction) {
      const half = Math.tan((eye.fov * Math.PI) / 360) * Math.min(1, eye.aspect);
      controls.target.copy(middle);
      eye.position.copy(middle).addScaledVector(new THREE.Vector3(...direction).normalize(), radius / half);
      controls.update();
      render();
    }
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => stand(common.VIEWS[button.dataset.view]));
    }
    stand(common.VIEWS.overview);

    let clay = null;
    $("shade").addEventListener("click", () => {
      clay = clay || shaded(parts);
      const on = $("shade").getAttribute("aria-pressed") !== "true";
      $("shade").setAttribute("aria-pressed", String(on));
      scene.remove(...parts, ...clay);
      scene.add(...(on ? clay : parts));
      render();
    });

    // what is nearest to the ray through a double-click becomes the middle
    canvas.addEventListener("dblclick", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 2 - 1, y = 1 - ((event.clientY - box.top) / box.height) * 2;
      const point = new THREE.Vector3(), found = new THREE.Vector3();
      let best = Infinity;
      for (const part of parts) {
        const position = part.geometry.getAttribute("position");
        for (let i = 0; i < position.count; i++) {
          point.fromBufferAttribute(position, i).project(eye);
          if (point.z > 1) continue;
          const off = Math.hypot((point.x - x) * eye.aspect, point.y - y);
          if (off > 0.03) continue;
          const cost = point.z + 0.02 * off; // in front before behind
          if (cost < best) { best = cost; found.fromBufferAttribute(position, i); }
        }
      }
      if (best === Infinity) return;
      eye.position.add(found.clone().sub(controls.target));
      controls.target.copy(found);
      controls.update();
      render();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    function paint() {
      renderer.setClearColor(new THREE.Color(getComputedStyle(document.documentElement).getPropertyValue("--back").trim()));
      render();
    }
    paint();
    requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = "yes"; }));
  }

  show().catch((error) => fail(`The mesh cannot be shown: ${error.message}`));
})();
