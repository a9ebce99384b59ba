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

  // Where the keyboard is: an element with an identifier, or what opens one.
  const focused = () => {
    const e = document.activeElement, id = e?.id || e?.parentElement?.id;
    return id && (e.id ? `#${CSS.escape(id)}` : `#${CSS.escape(id)} > ${e.localName}`);
  };

  const update = async (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html"), here = sections(document), there = sections(fresh);
    if (here.size !== there.size || [...there.keys()].some((name) => !here.has(name))) return location.reload();
    const changed = [...there].filter(([name, e]) => e.innerHTML !== came.get(name));
    if (!changed.length) return;
    const open = [...document.querySelectorAll("details[open][id]")].map((e) => e.id);
    const focus = focused(), left = scrollX, top = scrollY;
    for (const [name, e] of changed) {
      came.set(name, e.innerHTML);
      here.get(name).innerHTML = e.innerHTML;
    }
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    document.title = fresh.title;
    await window.fastnas?.refresh?.(); // which keeps the slider, or follows the run
    if (focus && !document.activeElement?.matches(focus)) document.querySelector(focus)?.focus({ preventScroll: true });
    scrollTo({ left, top, behavior: "instant" });
  };

  const ask = async () => {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    try {
      const answer = await fetch(location.href, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        await update(await answer.text());
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
