() => {
  const boxes = [];
  for (const e of document.querySelectorAll("header *, main *")) {
    if (e.closest("svg, .plot, .tile, sub, sup") || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (getComputedStyle(e).clipPath !== "none" || e.closest("thead") && getComputedStyle(e.closest("thead")).clipPath !== "none") continue;
    for (const node of e.childNodes) {
      if (node.nodeType !== 3 || !node.textContent.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const r of range.getClientRects()) if (r.width > 2 && r.height > 2) boxes.push([r.left, r.top, r.right, r.bottom, node.textContent.trim().slice(0, 30)]);
    }
  }
  const faults = [];
  boxes.sort((a, b) => a[1] - b[1]);
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length && boxes[j][1] < boxes[i][3]; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), high = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
    // Line boxes are taller than letters: neighbouring lines may share a few pixels of them.
    if (wide > 2 && high > 6) faults.push(`${a[4]} | ${b[4]}`);
  }
  return faults;
}
