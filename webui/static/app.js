// Keeps the dashboard live: listens to what changed and fetches the live part
// again. Where the event stream does not come through, it polls instead.
"use strict";

const live = document.getElementById("live");
const notice = document.getElementById("notice");
const pollEvery = 3000; // ms
const retryEvery = 10000; // ms, for a stream that was refused
let html = "";
let fetching = false;
let again = false;
let poll = 0;

function say(text) {
  notice.textContent = text;
  notice.hidden = text === "";
}

// refresh fetches the live part. Calls while one is under way become one more.
async function refresh() {
  if (fetching) {
    again = true;
    return;
  }
  fetching = true;
  try {
    const response = await fetch("/fragments/live" + location.search, { cache: "no-store" });
    if (response.status === 401) {
      location.assign("/login?next=" + encodeURIComponent(location.pathname + location.search));
      return;
    }
    if (response.ok) {
      show(await response.text());
    }
  } catch {
    startPolling(); // the server is away; keep what is shown and try again
  } finally {
    fetching = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

function show(text) {
  if (text === html) {
    return;
  }
  html = text;
  const focused = document.activeElement && live.contains(document.activeElement) ? document.activeElement.id : "";
  live.innerHTML = text; // rendered and escaped by the server
  if (focused) {
    document.getElementById(focused)?.focus();
  }
}

function startPolling() {
  if (!poll) {
    poll = setInterval(refresh, pollEvery);
  }
}

function stopPolling() {
  clearInterval(poll);
  poll = 0;
}

function listen() {
  if (!("EventSource" in window)) {
    startPolling();
    return;
  }
  const events = new EventSource("/api/events");
  events.addEventListener("open", stopPolling);
  events.addEventListener("change", refresh);
  events.addEventListener("error", () => {
    startPolling();
    // A broken stream reconnects by itself; one that was refused does not.
    if (events.readyState === EventSource.CLOSED) {
      setTimeout(listen, retryEvery);
    }
  });
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button || (button.dataset.confirm && !confirm(button.dataset.confirm))) {
    return;
  }
  button.disabled = true;
  say("");
  try {
    const response = await fetch(button.dataset.post, { method: "POST" });
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      say(body.error ? body.error.message : "The server answered " + response.status + ".");
    }
  } catch {
    say("The server does not answer. It is not known whether this was done; wait for the page to be up to date.");
  } finally {
    button.disabled = false;
    refresh();
  }
});

listen();
