"use strict";
(() => {
  const root = document.documentElement;
  const plots = new Map(); // id -> element that Plotly drew into
  const hidden = new Set(); // colours of hidden runs
  const MOST_SURFACES = 8; // browsers drop WebGL contexts beyond some 16
  const config = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", topojsonURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d", "autoScale2d", "resetCameraLastSave3d", "tableRotation", "orbitRotation"] };

  const payload = (id) => JSON.parse(document.querySelector(`script[data-for="${CSS.escape(id)}"]`).textContent);

  // --- colours: plots name CSS variables; resolve them again whenever the theme changes
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  let colors = new Map();
  function color(name) {
    if (!colors.has(name)) {
      probe.style.color = name;
      colors.set(name, getComputedStyle(probe).color);
    }
    return colors.get(name);
  }
  function resolve(value) {
    if (typeof value === "string") return /^var\(--[\w-]+\)$/.test(value) ? color(value) : value;
    // Long columns of numbers need no look at each; the stops of a colour scale begin with a number too.
    if (Array.isArray(value)) return typeof value[0] === "number" && typeof value.at(-1) === "number" ? value : value.map(resolve);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v)]));
    return value;
  }

  // --- drawing: draw a plot when it comes near the screen
  function webgl() {
    try { return !!document.createElement("canvas").getContext("webgl"); } catch { return false; }
  }
  const canSurface = webgl();
  function described(id) {
    const { data, layout } = resolve(payload(id).plot);
    for (const trace of data) if (hidden.has(trace.meta)) trace.visible = false;
    return { data, layout };
  }
  function draw(holder) {
    const id = holder.dataset.plot;
    if (plots.has(id) || !holder.offsetParent) return;
    const canvas = holder.appendChild(document.createElement("div"));
    canvas.className = "canvas";
    plots.set(id, canvas);
    const { data, layout } = described(id);
    Plotly.newPlot(canvas, data, layout, config);
  }
  const nearby = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "200px" });
  const flat = document.querySelectorAll(".plot:not(:has(.poster))");
  for (const holder of flat) nearby.observe(holder);
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => details.open && details.querySelectorAll(".plot").forEach(draw));
  }

  // --- surfaces: show a still image until the pointer enters, then make it and its neighbours turn
  const isLive = (canvas) => canvas.parentElement.classList.contains("live");
  function wake(holder) {
    if (holder.classList.contains("live") || !canSurface) return;
    for (const near of holder.closest(".tiles").querySelectorAll(".plot")) {
      const live = [...plots].filter(([, canvas]) => isLive(canvas));
      if (live.length >= MOST_SURFACES && near !== holder) continue;
      if (live.length >= MOST_SURFACES) sleep(...live[0]);
      draw(near);
      const canvas = plots.get(near.dataset.plot);
      if (!canvas || near.classList.contains("live")) continue;
      near.classList.add("live");
      const follow = (event) => event["scene.camera"] && turnAll(event["scene.camera"], canvas);
      canvas.on("plotly_relayouting", follow);
      canvas.on("plotly_relayout", follow);
    }
  }
  function sleep(id, canvas) {
    plots.delete(id);
    canvas.parentElement.classList.remove("live");
    for (const c of canvas.querySelectorAll("canvas")) {
      const gl = c.getContext("webgl") || c.getContext("webgl2");
      gl?.getExtension("WEBGL_lose_context")?.loseContext();
    }
    Plotly.purge(canvas);
    canvas.remove();
  }
  for (const holder of document.querySelectorAll(".plot:has(.poster)")) {
    holder.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && wake(holder));
    holder.addEventListener("click", () => wake(holder));
  }

  // --- turn all surfaces together, by pointer or arrow keys
  let shared = ""; // the camera of all surfaces: a surface that follows another must not be followed
  let frame = 0;
  function turnAll(camera, from) {
    const text = JSON.stringify(camera);
    if (text === shared) return;
    shared = text;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      for (const canvas of plots.values()) {
        if (canvas !== from && isLive(canvas)) Plotly.relayout(canvas, { "scene.camera": JSON.parse(text) });
      }
    });
  }
  const KEYS = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.12], ArrowDown: [0, -0.12] };
  document.addEventListener("keydown", (event) => {
    const holder = event.target.closest?.(".plot[tabindex]");
    if (!holder || !KEYS[event.key] || !canSurface) return;
    event.preventDefault();
    wake(holder);
    const [across, up] = KEYS[event.key];
    const canvas = plots.get(holder.dataset.plot);
    const camera = canvas.layout.scene.camera;
    const { x, y, z } = camera.eye;
    const eye = { x: x * Math.cos(across) - y * Math.sin(across), y: x * Math.sin(across) + y * Math.cos(across), z: z + up };
    turnAll({ ...camera, eye }, null);
  });

  // --- theme: light or dark
  const button = document.getElementById("theme");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("samovar-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
  function recolor() {
    colors = new Map();
    button.setAttribute("aria-pressed", String(isDark()));
    for (const [id, canvas] of plots) {
      const { data, layout } = described(id);
      const camera = canvas.layout?.scene?.camera;
      if (camera) layout.scene.camera = camera;
      Plotly.react(canvas, data, layout, config);
    }
  }
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("samovar-theme", root.dataset.theme); } catch { /* a file without storage */ }
    recolor();
  });
  wantsDark.addEventListener("change", recolor);
  button.setAttribute("aria-pressed", String(isDark()));

  // --- show or hide a run in all figures and tables
  document.getElementById("chips")?.addEventListener("click", (event) => {
    const chip = event.target.closest("button");
    if (!chip) return;
    const number = Number(chip.dataset.toggle);
    const show = hidden.delete(number);
    if (!show) hidden.add(number);
    chip.setAttribute("aria-pressed", String(show));
    for (const element of document.querySelectorAll(`[data-color="${number}"]`)) element.classList.toggle("off", !show);
    for (const canvas of plots.values()) {
      const which = canvas.data.map((trace, i) => (trace.meta === number ? i : -1)).filter((i) => i >= 0);
      if (which.length) Plotly.restyle(canvas, { visible: show }, which);
    }
  });

  // --- save the data of a part as CSV
  document.addEventListener("click", (event) => {
    const id = event.target.closest?.("[data-csv]")?.dataset.csv;
    if (!id) return;
    const url = URL.createObjectURL(new Blob([payload(id).csv], { type: "text/csv" }));
    const link = Object.assign(document.createElement("a"), { href: url, download: `${id}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });

  // --- open a picture large
  const large = document.getElementById("large");
  document.addEventListener("click", (event) => {
    const tile = event.target.closest?.("[data-large]");
    if (tile) {
      const run = tile.closest(".gallery").querySelector("h4").textContent.trim();
      large.querySelector("i").className = tile.querySelector("i").className;
      large.classList.toggle("coarse", !!tile.closest(".coarse"));
      document.getElementById("large-text").textContent = `${run}: ${tile.dataset.large}`;
      large.showModal();
    } else if (event.target === large) large.close(); // the backdrop
  });

  // --- mark the current chapter in the navigation
  const sections = [...document.querySelectorAll("main section")];
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  function mark() {
    const here = sections.findLast((s) => s.getBoundingClientRect().top < innerHeight * 0.35) ?? sections[0];
    for (const [id, link] of links) id === here.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }
  addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
  mark();

  // --- served page: ask for news, and put new numbers and curves in place
  const EVERY_MS = 2000;
  let version = document.body.dataset.live;
  async function refresh() {
    const line = document.getElementById("live");
    try {
      const state = await (await fetch("/state", { cache: "no-store" })).json();
      const said = state.lines.join(" · ");
      if (line.textContent !== said) line.textContent = said;
      if (state.version !== version) {
        const text = await (await fetch("/fresh", { cache: "no-store" })).text();
        const fresh = new DOMParser().parseFromString(text, "text/html");
        replaceWith(fresh);
        version = fresh.body.dataset.live;
      }
    } catch {
      line.textContent = "The report is no longer served; this is its last state.";
    }
    setTimeout(refresh, EVERY_MS);
  }
  const shape = (page) => [...page.querySelectorAll("main [id]")].map((e) => e.id).join() + page.querySelector("style").textContent;
  function replaceWith(fresh) {
    // New chapters or pictures change the page as a whole.
    if (shape(fresh) !== shape(document)) return location.reload();
    for (const now of document.querySelectorAll(".table-card, .statements, .notice")) {
      const then = now.id && fresh.getElementById(now.id);
      if (then && then.innerHTML !== now.innerHTML) {
        const open = now.querySelector("details")?.open;
        now.innerHTML = then.innerHTML;
        if (open) now.querySelector("details").open = true;
      }
    }
    for (const now of document.querySelectorAll("script[data-for]")) {
      const id = now.dataset.for;
      const then = fresh.querySelector(`script[data-for="${CSS.escape(id)}"]`).textContent;
      if (then === now.textContent) continue;
      now.textContent = then;
      const canvas = plots.get(id);
      if (canvas && !isLive(canvas)) {
        const { data, layout } = described(id);
        Plotly.react(canvas, data, layout, config);
      }
    }
  }
  if (version) setTimeout(refresh, EVERY_MS);

  // --- print: draw everything, in the light theme, as wide as paper
  let before = null;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme ?? "";
    root.dataset.theme = "light";
    flat.forEach(draw);
    recolor();
    for (const [, canvas] of plots) if (!isLive(canvas)) fit(canvas);
  });
  function fit(canvas) {
    const wide = canvas.closest("figure.wide, .grid > figure:only-child");
    Plotly.relayout(canvas, { width: wide ? 640 : 296, height: 240, autosize: false });
  }
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    for (const canvas of plots.values()) Plotly.relayout(canvas, { width: null, height: null, autosize: true });
    recolor();
  });
})();
