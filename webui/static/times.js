// Shows times in the reader's zone. The server renders UTC, for readers without
// script; the absolute time is in the title.
"use strict";

const showTimes = (() => {
  const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const near = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const second = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const every = 10000; // ms

  // The reader's clock may be wrong; the server's was right when it made the page.
  const ahead = Date.now() - new Date(document.body.dataset.now);

  function ago(then) {
    const s = Math.floor((Date.now() - ahead - then) / 1000);
    if (s < 5) return "now";
    if (s < 60) return s + " s ago";
    if (s < 3600) return Math.floor(s / 60) + " min ago";
    if (s < 48 * 3600) return Math.floor(s / 3600) + " h ago";
    return Math.floor(s / 86400) + " days ago";
  }

  function show(root) {
    for (const el of root.querySelectorAll("time[data-as]")) {
      const then = new Date(el.dateTime);
      const as = el.dataset.as;
      const text = as === "ago" ? ago(then) : as === "second" ? second.format(then) : near.format(then);
      if (el.textContent !== text) el.textContent = text;
      const title = full.format(then);
      if (el.title !== title) el.title = title;
    }
  }

  show(document);
  setInterval(() => show(document), every);
  document.addEventListener("htmx:afterSwap", (event) => show(event.target.isConnected ? event.target : document));
  return show;
})();
