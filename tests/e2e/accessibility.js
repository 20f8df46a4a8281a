() => {
  const faults = [];
  const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  // contrast of text, WCAG 1.4.3
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg, script, style, noscript") || !seen(e)) continue;
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    const style = getComputedStyle(e), [a, b] = [light(rgb(style.color)), light(behind(e))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) faults.push(`contrast of "${e.textContent.trim().slice(0, 40)}"`);
  }
  // names of controls and alternative texts
  const name = (e) => (e.getAttribute("aria-label") || e.textContent || e.title || "").trim();
  for (const e of document.querySelectorAll("button, a[href], [role=img], [role=group], [role=region], summary")) if (seen(e) && !name(e)) faults.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) faults.push(`no alt: ${e.className}`);
  // headings in order, landmarks, unique ids, what scrolls takes the focus
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) { const n = Number(e.tagName[1]); if (n > level + 1) faults.push(`${e.tagName} after H${level}: ${e.textContent.trim().slice(0, 40)}`); level = n; }
  for (const tag of ["main", "header", "nav"]) if (document.querySelectorAll(`body > ${tag}`).length !== 1) faults.push(`landmark ${tag}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1 && !id.match(/^[0-9a-f]{6}|^g-|^topdefs|^clip/)) faults.push(`id ${id} twice`);
  for (const e of document.querySelectorAll("main *")) if (seen(e) && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0) faults.push(`no focus: ${e.className}`);
  if (!document.documentElement.lang) faults.push("no language");
  return faults;
}
