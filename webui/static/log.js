// Keeps a log at its end while it grows, unless its reader went up in it.
"use strict";

(() => {
  const log = document.getElementById("log");
  let follow = true;
  const toEnd = () => {
    if (follow) log.scrollTop = log.scrollHeight;
  };
  log.addEventListener("scroll", () => {
    follow = log.scrollTop + log.clientHeight > log.scrollHeight - 30;
  });
  document.addEventListener("htmx:afterSwap", toEnd);
  toEnd();
})();
