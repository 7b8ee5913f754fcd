// Publishes a release: sends the files in the order that the server reads them
// in, and shows how far that is.
"use strict";

(() => {
  const form = document.getElementById("publish");
  const files = document.getElementById("files");
  const shown = document.getElementById("uploading");
  const bar = document.getElementById("uploaded");
  const text = document.getElementById("upload-text");
  const button = form.querySelector("button");

  function parts() {
    const all = [...files.files];
    const manifest = all.find((f) => f.name === "manifest.json");
    const signature = all.find((f) => f.name === "manifest.json.minisig");
    const artifacts = all.filter((f) => f !== manifest && f !== signature);
    if (!manifest || !signature || artifacts.length === 0) {
      return null;
    }
    const body = new FormData();
    body.append("manifest", manifest);
    body.append("signature", signature);
    for (const artifact of artifacts) body.append("artifact", artifact);
    return body;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (button.disabled) return;
    const body = parts();
    if (!body) {
      moultNote(form, "choose manifest.json, manifest.json.minisig and the binaries, all at once");
      return;
    }
    moultNote(form, "");
    button.disabled = true;
    shown.hidden = false;
    bar.value = 0;
    text.textContent = "";

    const request = new XMLHttpRequest();
    request.open("POST", form.dataset.upload);
    request.upload.addEventListener("progress", (e) => {
      bar.value = e.lengthComputable ? (100 * e.loaded) / e.total : 0;
      text.textContent = e.loaded < e.total ? Math.floor(bar.value) + " %" : "Sent. Waiting until a majority of the servers holds it.";
    });
    request.addEventListener("loadend", () => {
      button.disabled = false;
      shown.hidden = true;
      if (request.status === 200) {
        form.reset();
        moultChanged(["*"]);
        return;
      }
      let message = "The server does not answer. It is not known whether this was published: wait until the page is up to date, then look.";
      try {
        message = JSON.parse(request.responseText).error.message;
      } catch {
        // no answer of the server's own
      }
      moultNote(form, message);
    });
    request.send(body);
  });
})();
