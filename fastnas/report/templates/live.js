// The page of a run that goes on: fetches itself, and puts what has changed in place of what was there.
(() => {
  "use strict";
  const SOON = 2000, LATE = 30000; // milliseconds between two questions; when nobody looks, or nobody answers
  const status = document.getElementById("live-status");
  const sections = (page) => new Map([...page.querySelectorAll("[data-live]")].map((e) => [e.dataset.live, e]));
  // As they came: what the page's own script has written into them since is no change of the run.
  const came = new Map([...sections(document)].map(([name, e]) => [name, e.innerHTML]));
  let etag = "", wait = SOON, timer = 0, asking = false;

  const say = (text, state) => {
    if (status && status.textContent !== text) {
      status.textContent = text;
      status.dataset.state = state;
    }
  };

  // What the reader has set: open details, focus, sliders. One that stands at its end follows the run.
  const kept = () => ({
    open: new Set([...document.querySelectorAll("details[open][id]")].map((e) => e.id)),
    focus: document.activeElement?.id,
    sliders: [...document.querySelectorAll("input[type=range][id]")].map((e) => [e.id, e.value, e.value === e.max]),
    scroll: [scrollX, scrollY],
  });

  const restore = ({ open, focus, sliders, scroll }, fresh) => {
    for (const e of document.querySelectorAll("details[id]")) e.open = open.has(e.id);
    for (const [id, value, last] of sliders) {
      const slider = document.getElementById(id), newer = fresh.getElementById(id);
      if (!slider || !newer) continue;
      slider.max = newer.max;
      slider.value = last ? newer.max : value;
    }
    window.fastnas?.refresh?.();
    if (focus && document.activeElement?.id !== focus) document.getElementById(focus)?.focus({ preventScroll: true });
    scrollTo({ left: scroll[0], top: scroll[1], behavior: "instant" });
  };

  const update = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html"), here = sections(document), there = sections(fresh);
    if (here.size !== there.size || [...there.keys()].some((name) => !here.has(name))) return location.reload();
    const changed = [...there].filter(([name, e]) => e.innerHTML !== came.get(name));
    if (!changed.length) return;
    const before = kept();
    for (const [name, e] of changed) {
      came.set(name, e.innerHTML);
      here.get(name).innerHTML = e.innerHTML;
    }
    document.title = fresh.title;
    restore(before, fresh);
  };

  const ask = async () => {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    try {
      const answer = await fetch(location.href, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        update(await answer.text());
        etag = answer.headers.get("ETag") ?? "";
      } else if (answer.status !== 304) throw new Error(answer.statusText);
      if (answer.headers.get("Fastnas-Ended")) return say("The run has ended; this is what it came to.", "ended");
      say("Live: the page follows the run.", "live");
      wait = SOON;
    } catch {
      say("The run has ended, or cannot be reached; this is the last that was heard of it.", "lost");
      wait = Math.min(2 * wait, LATE);
    } finally {
      asking = false;
    }
    timer = setTimeout(ask, document.hidden ? LATE : wait);
  };

  document.addEventListener("visibilitychange", () => { if (!document.hidden && status?.dataset.state !== "ended") ask(); });
  timer = setTimeout(ask, SOON);
})();
