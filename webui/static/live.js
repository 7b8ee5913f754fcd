// Keeps a page live. The server's event stream names what changed; the regions
// that name it in data-topics are fetched again by htmx, with the reader's own
// rights. While the stream is down the page polls. A hidden page does neither: a
// browser has few connections to one server, and each stream holds one.
"use strict";

(() => {
  const pollEvery = 3000; // ms
  const silence = 40000; // ms without an event or a ping, after which the stream counts as lost
  const gap = 400; // ms at least between two fetches of one region
  const moveAfter = 5000; // ms without an answer, after which another server is looked for
  const probeTimeout = 2000; // ms

  const banner = document.getElementById("lost");
  const others = (document.body.dataset.others || "").split(" ").filter(Boolean).map((pair) => {
    const [name, origin] = pair.split("=");
    return { name, url: origin + location.pathname + location.search, ask: origin + "/healthz" };
  });

  let ready = false; // htmx hears what is to be fetched
  let stream = null;
  let open = false; // the stream is there
  let heard = 0; // when something came from the stream last
  let lostSince = 0; // since when the server does not answer; 0 when it does
  let probing = false;

  // Regions.

  const fetched = new WeakMap(); // region -> when it was fetched last
  const waiting = new WeakSet(); // regions with a fetch to come

  function refresh(region) {
    const wait = (fetched.get(region) ?? -Infinity) + gap - performance.now();
    if (waiting.has(region)) return;
    if (wait > 0) {
      waiting.add(region);
      setTimeout(() => {
        waiting.delete(region);
        refresh(region);
      }, wait);
      return;
    }
    if (!region.isConnected) return;
    fetched.set(region, performance.now());
    htmx.trigger(region, "refresh");
  }

  function changed(topics) {
    for (const region of document.querySelectorAll("[data-topics]")) {
      const wanted = region.dataset.topics.split(" ").filter(Boolean);
      if (wanted.length > 0 && (topics.includes("*") || wanted.some((t) => topics.includes(t)))) refresh(region);
    }
  }

  // The stream.

  function listen() {
    if (stream || document.hidden || !ready) return;
    stream = new EventSource("/api/events");
    const heardNow = () => {
      heard = Date.now();
    };
    stream.addEventListener("open", () => {
      open = true; // and its first event has everything fetched
      heardNow();
    });
    stream.addEventListener("ping", heardNow);
    stream.addEventListener("change", (event) => {
      heardNow();
      changed(JSON.parse(event.data).topics);
    });
    stream.addEventListener("error", () => {
      drop();
      changed(["*"]); // at once: it tells whether the server is lost, or only the stream
    });
  }

  function drop() {
    stream?.close();
    stream = null;
    open = false;
  }

  setInterval(() => {
    if (document.hidden) return;
    if (open && Date.now() - heard > silence) drop();
    if (!open) {
      changed(["*"]);
      drop();
      listen();
    }
    if (lostSince && Date.now() - lostSince > moveAfter) move();
  }, pollEvery);

  document.addEventListener("visibilitychange", () => (document.hidden ? drop() : listen()));
  addEventListener("pageshow", listen);
  addEventListener("pagehide", drop);

  // What no event tells of is fetched every few seconds.
  for (const region of document.querySelectorAll("[data-every]")) {
    setInterval(() => document.hidden || refresh(region), region.dataset.every * 1000);
  }

  // The server is lost, and found.

  function lost(text) {
    lostSince ||= Date.now();
    if (banner.hidden) say(text + " What you see may be old; trying again.");
  }

  function found() {
    lostSince = 0;
    banner.hidden = true;
  }

  function say(text, ...links) {
    banner.textContent = text;
    for (const { name, url } of links) {
      const a = document.createElement("a");
      a.href = url;
      a.textContent = "Go on at " + name;
      banner.append(" ", a);
    }
    banner.hidden = false;
  }

  // move goes on at another server that answers. Where something was typed, it
  // asks first.
  async function move() {
    if (probing) return;
    probing = true;
    try {
      for (const other of others) {
        try {
          await fetch(other.ask, { mode: "no-cors", cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(probeTimeout) });
        } catch {
          continue;
        }
        if (!lostSince) return;
        if (typed()) {
          say("This server does not answer, another one does. Going there loses what you typed.", other);
        } else {
          location.replace(other.url);
        }
        return;
      }
    } finally {
      probing = false;
    }
  }

  function typed() {
    return [...document.querySelectorAll("form[data-call] input, form[data-call] textarea")].some((el) => el.value !== el.defaultValue);
  }

  const silent = "This server does not answer.";
  document.addEventListener("htmx:sendError", () => lost(silent));
  document.addEventListener("htmx:timeout", () => lost(silent));
  document.addEventListener("htmx:beforeOnLoad", (event) => {
    const status = event.detail.xhr.status;
    if (status === 401 && document.querySelector("[aria-busy=true]")) {
      event.preventDefault(); // a call under way may bring a new session; at its end all is fetched again
      return;
    }
    if (status < 500) {
      found();
    } else {
      lost("This server is in trouble: it answers " + status + ".");
    }
  });

  // What people typed, opened or were told stays when a region is fetched again.
  Object.assign(Idiomorph.defaults.callbacks, {
    beforeAttributeUpdated: (name, el) => !isTheReaders(name, el),
    beforeNodeRemoved: (node) => !(node instanceof Element && node.matches("[data-note]")),
  });

  function isTheReaders(attribute, el) {
    switch (attribute) {
      case "open":
      case "selected":
      case "aria-busy":
        return true;
      case "value":
        return el.matches("input:not([type=hidden]), textarea, select");
      case "checked":
        return el.checked !== el.defaultChecked;
      default:
        return false;
    }
  }

  window.moultChanged = changed;
  document.addEventListener("DOMContentLoaded", () => {
    ready = true;
    listen();
  });
})();
