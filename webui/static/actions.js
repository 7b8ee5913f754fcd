// Buttons and forms that call the API. Markup says all:
//
//   data-call="POST /api/…"   what to call; a form sends its fields as JSON, boxes
//                             of one name as the list of those that are ticked
//                             (data-json: the field's value is JSON; data-labels:
//                             it is key=value, one a line; data-bool: whether the
//                             box is ticked)
//   data-body='{"…"}'         the body that a button sends
//   data-confirm="…?"         what to ask first
//   data-then="/jobs/{job_id}" where to go then, with fields of the answer
//   data-show="id"            which element to fill with the answer: its parts
//                             with data-field are given the field of that name
//   method="dialog"            of a form: without this script nothing is sent; the
//                             browser's own way would put passwords into the address
//
// An error is shown beside what was pressed. What was pressed stays disabled
// until the answer is there, so a double click is one call.
"use strict";

(() => {
  const unknown = "The server does not answer. It is not known whether this was done: wait until the page is up to date, then look.";

  async function call(method, path, body) {
    const response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const answer = await response.json().catch(() => ({}));
    if (response.status === 401) {
      location.assign("/login?next=" + encodeURIComponent(location.pathname + location.search));
    }
    if (answer.error?.code === "reauthentication_required" && (await confirmPassword())) {
      return call(method, path, body);
    }
    if (!response.ok) {
      throw new Refused(answer.error ? answer.error.message : "The server answered " + response.status + ".");
    }
    return answer;
  }

  class Refused extends Error {}

  // confirmPassword asks for the password until it is right; false when nobody
  // gives it. A call that was refused for it has done nothing.
  function confirmPassword() {
    const dialog = document.getElementById("reauth");
    const form = dialog.querySelector("form");
    const password = dialog.querySelector("[type=password]");
    const submit = form.querySelector("[type=submit]");
    return new Promise((done) => {
      const end = (right) => {
        form.onsubmit = null;
        dialog.onclose = null;
        password.value = "";
        note(password, "");
        dialog.close();
        done(right);
      };
      form.querySelector("[type=button]").onclick = () => end(false);
      dialog.onclose = () => end(false); // by Escape
      form.onsubmit = async (event) => {
        event.preventDefault();
        if (submit.disabled) return;
        submit.disabled = true;
        try {
          await call("POST", "/api/account/confirm", { password: password.value });
          end(true);
        } catch (err) {
          note(password, err instanceof Refused ? err.message : unknown);
          password.select();
        } finally {
          submit.disabled = false;
        }
      };
      dialog.showModal();
      password.focus();
    });
  }

  let notes = 0;

  // note shows an error beside the element it is about; "" takes it away.
  function note(source, text) {
    const place = source.closest("form, .card") || source.parentElement;
    let box = place.querySelector("[data-note]");
    if (!text) {
      box?.remove();
      return;
    }
    if (!box) {
      box = document.createElement("p");
      box.id = "note-" + ++notes; // its own, so that morphing takes no other paragraph for it
      box.className = "error";
      box.dataset.note = "";
      box.setAttribute("role", "alert");
      place.append(box);
    }
    box.textContent = text;
  }

  function fieldsOf(form) {
    const body = {};
    for (const el of form.elements) {
      if (!el.name || el.disabled) continue;
      if (el.dataset.bool !== undefined) {
        body[el.name] = el.checked;
      } else if (el.type === "checkbox") {
        body[el.name] ??= [];
        if (el.checked) body[el.name].push(el.value);
      } else if (el.dataset.labels !== undefined) {
        body[el.name] = labelsOf(el.value);
      } else if (el.value !== "") {
        body[el.name] = el.dataset.json !== undefined ? JSON.parse(el.value) : el.type === "number" ? Number(el.value) : el.value;
      }
    }
    return body;
  }

  function labelsOf(text) {
    const pairs = text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
      const at = line.indexOf("=");
      return at < 0 ? [line, ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    });
    return Object.fromEntries(pairs);
  }

  function show(id, answer) {
    const place = document.getElementById(id);
    for (const el of place.querySelectorAll("[data-field]")) {
      const value = el.dataset.field.split(".").reduce((v, key) => v?.[key], answer);
      el.textContent = value ?? "";
    }
    place.hidden = false;
    place.focus();
  }

  window.moultNote = note;

  const dialog = document.getElementById("confirm");

  function ask(question, danger) {
    dialog.querySelector("p").textContent = question;
    dialog.querySelector("[value=yes]").className = danger ? "danger" : "primary";
    dialog.returnValue = "no";
    dialog.showModal();
    return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
  }

  const busy = new WeakSet(); // buttons whose call is under way

  async function run(source, button, body) {
    if (button.disabled || busy.has(button)) return;
    busy.add(button); // before anything is waited for
    let leaving = false;
    button.setAttribute("aria-busy", "true");
    try {
      const question = source.dataset.confirm;
      if (question && !(await ask(question, button.classList.contains("danger")))) return;
      note(source, "");
      if (source.dataset.show) document.getElementById(source.dataset.show).hidden = true;
      const [method, path] = source.dataset.call.split(" ");
      const answer = await call(method, path, body);
      if (source.dataset.then) {
        leaving = true; // stays busy until the other page is there
        location.assign(source.dataset.then.replace(/\{(\w+)\}/g, (_, key) => encodeURIComponent(answer[key])));
        return;
      }
      if (source instanceof HTMLFormElement) source.reset();
      if (source.dataset.show) show(source.dataset.show, answer);
      moultChanged(["*"]);
    } catch (err) {
      note(source, err instanceof Refused ? err.message : unknown);
      moultChanged(["*"]);
    } finally {
      if (!leaving) {
        button.removeAttribute("aria-busy");
        busy.delete(button);
      }
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-call]");
    if (button) {
      run(button, button, button.dataset.body ? JSON.parse(button.dataset.body) : undefined);
      return;
    }
    const copy = event.target.closest("button[data-copy]");
    if (copy) {
      // navigator.clipboard is there on HTTPS alone.
      getSelection().selectAllChildren(document.getElementById(copy.dataset.copy));
      copy.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C to copy";
    }
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.call === undefined) return;
    event.preventDefault();
    run(form, form.querySelector("button[type=submit]"), fieldsOf(form));
  });

  // Filters apply as soon as something else is chosen.
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-auto]");
    if (form && (event.target instanceof HTMLSelectElement || event.target.type === "checkbox")) form.requestSubmit();
  });
  // What is empty need not be in the address.
  document.addEventListener("formdata", (event) => {
    if (event.target.dataset.auto === undefined) return;
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });
})();
