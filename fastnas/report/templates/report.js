"use strict";
// The slider: it writes an epoch's cells, weights and figures into the page. Without it the page shows the last one.
(() => {
  const all = (selector, under = document) => [...under.querySelectorAll(selector)];
  const player = document.querySelector(".player");
  const slider = player.querySelector(".slider");
  const play = player.querySelector(".play");
  const now = player.querySelector(".now");
  let runs = new Map(); // identifier of a run -> what its payload says
  let charts = {}; // identifier of a chart -> {epochs, curves}
  let packed = new Map(); // identifier of a run -> the text that was unpacked
  let epoch = 0;
  let end = 0; // the last epoch that the slider knew
  let timer = null;

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // The place of the newest epoch that is not after `wanted`, the first if all are.
  function placeOf(epochs, wanted) {
    let low = 0, high = epochs.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (epochs[middle] <= wanted) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function writeWeights(figure, weights, digits) {
    for (const [kind, values] of [["edge", weights[0]], ["node", weights[1]]]) {
      for (const element of all(`.cell-weight[data-${kind}]`, figure)) {
        const weight = values[element.dataset[kind]];
        write(element, weight === null ? "" : weight.toFixed(digits));
      }
    }
    for (const path of all("path.cell-edge[data-edge]", figure)) {
      const weight = weights[0][path.dataset.edge];
      if (weight !== null) path.style.setProperty("--width", `${1 + 5 * weight}px`);
    }
  }

  function showCell(figure, run, place) {
    const slot = Number(figure.dataset.slot);
    const drawing = run.cells[place][slot];
    figure.hidden = drawing === null;
    if (drawing === null) return;
    if (figure.dataset.drawing !== String(drawing)) {
      for (const kind of ["wide", "narrow"]) figure.querySelector(`.${kind}`).innerHTML = run[kind][drawing];
      figure.dataset.drawing = drawing;
    }
    if (run.weights[place][slot]) writeWeights(figure, run.weights[place][slot], run.digits);
  }

  // As high as the highest that a cell ever was: what is below stays where it is when the slider moves.
  function reserve(name, run) {
    for (const figure of all(`.cell[data-run="${name}"]`)) {
      const slot = Number(figure.dataset.slot);
      const drawn = new Set(run.cells.map((cells) => cells[slot]).filter((drawing) => drawing !== null));
      for (const kind of ["wide", "narrow"]) {
        const heights = [...drawn].map((drawing) => Number(/ height="([\d.]+)"/.exec(run[kind][drawing])?.[1] ?? 0));
        figure.querySelector(`.${kind}`).style.minHeight = `${Math.max(0, ...heights)}px`;
      }
    }
  }

  function showRun(name, run) {
    if (!run.epochs.length || !run.cells) return;
    const place = placeOf(run.epochs, epoch);
    for (const element of all(`[data-epoch="${name}"]`)) write(element, String(run.epochs[place]));
    for (const list of all(`[data-readout="${name}"]`)) {
      all("dd", list).forEach((element, i) => write(element, run.readout[place][i] ?? ""));
    }
    for (const element of all(`[data-genotype="${name}"]`)) write(element, run.texts[run.genotypes[place]]);
    for (const figure of all(`.cell[data-run="${name}"]`)) showCell(figure, run, place);
  }

  function showCharts() {
    for (const svg of all("svg.chart")) {
      const { first, last, left, right } = svg.dataset;
      const shown = Math.min(Math.max(epoch, Math.ceil(first)), Math.floor(last));
      const x = Number(left) + ((shown - first) / (last - first)) * (right - left);
      const cursor = svg.querySelector(".cursor");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
    for (const output of all("output[data-chart]")) {
      const chart = charts[output.dataset.chart];
      if (chart) write(output, chart.curves[output.dataset.curve][placeOf(chart.epochs, epoch)]);
    }
  }

  function show(wanted) {
    epoch = Math.min(Math.max(Math.round(wanted), Number(slider.min)), Number(slider.max));
    slider.value = epoch;
    slider.setAttribute("aria-valuetext", `epoch ${epoch} of ${slider.max}`);
    now.innerHTML = `epoch <b>${epoch}</b> of ${Number(slider.max)}`;
    for (const [name, run] of runs) showRun(name, run);
    showCharts();
  }

  // Reads the page anew, as after a live update; who stood at the last epoch stands at the new last one.
  async function refresh() {
    const following = epoch === end;
    const found = new Map();
    for (const element of all(".payload")) {
      const name = element.dataset.run, text = element.textContent.trim();
      found.set(name, packed.get(name) === text ? runs.get(name) : await unpacked(text));
      packed.set(name, text);
    }
    runs = found;
    charts = Object.assign({}, ...[...runs.values()].map((run) => run.charts));
    const epochs = [...runs.values()].flatMap((run) => (run.epochs.length ? [run.epochs[0], run.epochs.at(-1)] : []));
    for (const button of all(".copy")) button.hidden = false;
    if (!epochs.length) return;
    slider.min = Math.min(...epochs);
    slider.max = end = Math.max(...epochs);
    for (const [name, run] of runs) if (run.cells) reserve(name, run);
    player.hidden = slider.min === slider.max;
    show(following ? end : epoch);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    play.firstElementChild.textContent = "▶";
  }

  function start() {
    const count = slider.max - slider.min + 1;
    if (epoch >= slider.max) show(Number(slider.min));
    timer = setInterval(() => (epoch >= slider.max ? stop() : show(epoch + 1)), Math.max(40, Math.min(500, 12000 / count)));
    play.setAttribute("aria-pressed", "true");
    play.firstElementChild.textContent = "❚❚";
  }

  async function copy(button) {
    const text = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  function epochAt(svg, event) {
    const box = svg.getBoundingClientRect(), { first, last, left, right } = svg.dataset;
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    return Number(first) + ((x - left) / (right - left)) * (last - first);
  }

  // A link to an epoch moves the slider, one to a run unfolds it.
  function byHash() {
    const found = /^#epoch-(\d+)$/.exec(location.hash);
    if (found) show(Number(found[1]));
    const fold = document.getElementById(`${location.hash.slice(1)}-fold`);
    if (fold) fold.open = true;
  }

  slider.addEventListener("input", () => (stop(), show(Number(slider.value))));
  play.addEventListener("click", () => (timer === null ? start() : stop()));
  document.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest("svg.chart");
    if (svg && event.button === 0) stop(), show(epochAt(svg, event));
  });
  document.addEventListener("pointermove", (event) => {
    const svg = event.buttons === 1 && event.target.closest?.("svg.chart");
    if (svg) show(epochAt(svg, event));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".copy");
    if (button) copy(button);
  });
  document.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const elsewhere = event.target.closest("input, pre, .scroll, .heat-box, summary") || event.altKey || event.ctrlKey || event.metaKey;
    if (steps && !elsewhere && !player.hidden) stop(), show(epoch + steps), event.preventDefault();
  });
  addEventListener("hashchange", byHash);
  window.fastnas = { refresh, show };
  refresh().then(byHash);
})();
