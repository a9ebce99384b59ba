// What a reader sees of a page, as numbers and lists: evaluated in it by tests/browser/looks.py.
({
  // By how many pixels the page is wider than its window, and what sticks out.
  overflow() {
    const wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    const inScroll = (element) => {
      for (let up = element.parentElement; up && up !== document.body; up = up.parentElement) {
        if (getComputedStyle(up).overflowX !== "visible") return true;
      }
      return false;
    };
    const out = [...document.body.querySelectorAll("*")].filter((element) => {
      const box = element.getBoundingClientRect();
      return box.width && box.right > innerWidth + 1 && !inScroll(element) && element.checkVisibility();
    });
    return { wider, out: out.map((element) => element.outerHTML.slice(0, 80)) };
  },

  // Levels of the headings, in order.
  headings() {
    return [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((heading) => Number(heading.tagName[1]));
  },

  // Pictures and controls without a name, and identifiers that are there twice.
  unnamed() {
    const text = (ids) => ids.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" ").trim();
    const named = (element) =>
      element.getAttribute("aria-label")?.trim() ||
      text(element.getAttribute("aria-labelledby") ?? "") ||
      element.getAttribute("alt")?.trim() ||
      (element.tagName === "BUTTON" && element.textContent.trim()) ||
      element.labels?.[0]?.textContent.trim();
    const pictures = [...document.querySelectorAll("svg, img, button, input")];
    const bare = pictures.filter((element) => !element.closest("[aria-hidden=true]") && !named(element));
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    const twice = [...new Set(ids.filter((id, i) => ids.indexOf(id) < i))];
    const lost = [...document.querySelectorAll("[aria-labelledby]")].filter((e) => !text(e.getAttribute("aria-labelledby")));
    return { bare: bare.map((e) => e.outerHTML.slice(0, 80)), twice, lost: lost.map((e) => e.outerHTML.slice(0, 80)) };
  },

  // Every text that can be seen and whose contrast (WCAG 2) to what is painted behind it is below `least`. The window
  // must hold the whole page.
  faint(least) {
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
      .getContext("2d", { willReadFrequently: true });
    const known = new Map();
    const rgba = (colour) => {
      if (!known.has(colour)) {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        known.set(colour, [r, g, b, a / 255]);
      }
      return known.get(colour);
    };
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const shade = (colour) => {
      const [r, g, b] = colour.slice(0, 3).map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const isText = (element) => element instanceof SVGElement && element.closest("text");
    const clear = (element) => {
      let left = 1;
      for (let up = element; up; up = up.parentElement) left *= Number(getComputedStyle(up).opacity);
      return left;
    };
    const painted = (element) => {
      const style = getComputedStyle(element);
      const shape = element instanceof SVGGeometryElement;
      if (shape && (element.tagName === "line" || style.fill === "none")) return [0, 0, 0, 0];
      const [r, g, b, a] = rgba(shape ? style.fill : style.backgroundColor);
      return [r, g, b, a * (shape ? Number(style.fillOpacity) : 1) * clear(element)];
    };
    const behind = (x, y) => {
      const layers = document.elementsFromPoint(x, y).filter((element) => !isText(element)).map(painted);
      const last = layers.findIndex((layer) => layer[3] === 1);
      const below = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
      return (last < 0 ? layers : layers.slice(0, last + 1)).reverse().reduce((under, layer) => over(layer, under), below);
    };
    const all = new CSSStyleSheet();
    all.replaceSync("* { pointer-events: auto !important; }");
    document.adoptedStyleSheets = [all];
    const faint = [];
    let seen = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement, range = document.createRange();
      if (!node.data.trim() || element.closest("script, style, title, desc") || !element.checkVisibility()) continue;
      range.selectNodeContents(node);
      const box = range.getBoundingClientRect(), [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      if (!box.width || x < 0 || y < 0 || x > innerWidth || y > innerHeight) continue;
      const style = getComputedStyle(element), ground = behind(x, y);
      const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
      const shades = [shade(over([...ink.slice(0, 3), ink[3] * clear(element)], ground)), shade(ground)];
      const contrast = (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
      seen += 1;
      if (contrast < least) faint.push(`${contrast.toFixed(2)} ${node.data.trim().slice(0, 30)} (${element.className.baseVal ?? element.className})`);
    }
    document.adoptedStyleSheets = [];
    return { faint: [...new Set(faint)], seen };
  },
})
