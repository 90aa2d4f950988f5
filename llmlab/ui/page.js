// The page's own script: language, views, search, keyboard, links. The live panel brings its own.
(() => {
  const words = WORDS;
  const techniques = TECHNIQUES;
  const chinese = (navigator.language || "").toLowerCase().startsWith("zh");
  const mark = () => {
    document.body.classList.toggle("lang-zh", chinese);
    document.body.classList.toggle("view-studies", new URLSearchParams(location.search).has("study"));
  };
  document.body ? mark() : addEventListener("DOMContentLoaded", mark);
  document.documentElement.lang = chinese ? "zh-CN" : "en";

  const press = (id) => document.querySelector(`#${id}`)?.click();
  addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      // A text box tells its value when it loses focus; without this the run would miss the last words.
      document.activeElement?.blur?.();
      setTimeout(() => press(view() === "studies" ? "study-run" : "run"), 50);
    } else if (e.key === "Escape" && !e.target.matches?.("[data-search]")) {
      press(view() === "studies" ? "study-stop" : "stop");
    }
  });

  // Views: both stay mounted, the style sheet hides one. Each has a link of its own.
  const links = { playground: "", studies: "" };
  const view = () => (document.body.classList.contains("view-studies") ? "studies" : "playground");
  const show = () => {
    for (const b of document.querySelectorAll("[data-view]")) b.setAttribute("aria-pressed", b.dataset.view === view());
  };
  const remember = (name, query) => {
    if (query) links[name] = query;
    if (query && view() === name) history.replaceState(null, "", location.pathname + query);
  };
  const change = (name) => {
    document.body.classList.toggle("view-studies", name === "studies");
    show();
    if (links[name]) history.replaceState(null, "", location.pathname + links[name]);
    dispatchEvent(new Event("resize")); // figures drawn while their view was hidden have no width yet
    scrollTo(0, 0);
  };

  // The list of techniques: families fold, and a search shows what it finds wherever it is folded away. What is on
  // stays in view with its knobs.
  const fold = (b) => b.setAttribute("aria-expanded", b.getAttribute("aria-expanded") !== "true");
  const seek = (text) => {
    const wanted = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const rules = [];
    const families = {};
    for (const [name, { role, words: own }] of Object.entries(techniques)) {
      const hit = wanted.every((w) => own.includes(w));
      families[role] ||= hit;
      if (!hit) rules.push(`#controls label:has(input:is([value="${name}"], [name="${name}"]):not(:checked)) { display: none !important; }`);
    }
    for (const role in families) if (!families[role]) rules.push(`#family-${role}:not(:has(input:checked:not([value="off"]))) { display: none !important; }`);
    let sheet = document.querySelector("#found");
    if (!sheet) document.head.append((sheet = Object.assign(document.createElement("style"), { id: "found" })));
    sheet.textContent = wanted.length ? rules.join("\n") : "";
    document.body.classList.toggle("searching", wanted.length > 0);
    const none = document.querySelector("[data-search-none]");
    if (none) none.hidden = !wanted.length || Object.values(families).some(Boolean);
  };
  addEventListener("input", (e) => e.target.matches?.("[data-search]") && seek(e.target.value));
  addEventListener("click", (e) => {
    const button = e.target.closest?.("[data-view], [data-fold]");
    if (button?.dataset.view) change(button.dataset.view);
    else if (button) fold(button);
  });

  // A technique that cannot be added is disabled, so that neither mouse nor keyboard chooses it. The one that has the
  // focus keeps it: disabling it would throw the focus to the top of the page.
  const bar = () => {
    for (const input of document.querySelectorAll("#controls .family fieldset[id] input")) {
      const family = input.closest("fieldset");
      const barred = family.classList.contains(`no-${input.type === "radio" ? input.value : input.name}`);
      const off = barred && input !== document.activeElement;
      if (input.disabled !== off) input.disabled = off;
      if (barred === input.hasAttribute("aria-disabled")) continue;
      for (const [name, value] of [["aria-disabled", "true"], ["aria-describedby", `reason-${family.id}`]]) {
        if (barred) input.setAttribute(name, value);
        else input.removeAttribute(name);
      }
    }
  };
  const refuse = (e) => {
    if (!e.target.closest?.("label:has(> [aria-disabled])") || e.key === "Tab") return;
    e.preventDefault();
    e.stopImmediatePropagation();
  };
  addEventListener("click", refuse, true);
  addEventListener("keydown", refuse, true);
  addEventListener("focusout", () => setTimeout(bar));

  // The account below names its run. While the panel shows another one, it says so.
  const stale = () => {
    const told = document.querySelector("#whose [data-run]");
    const run = document.querySelector("[data-testid=live-panel]")?.dataset.run;
    document.body.classList.toggle("account-old", Boolean(told && run && told.dataset.run !== run));
  };
  const follow = () => {
    const of = (id) => document.querySelector(id);
    if (!of("#controls .family") || !of("#whose") || !of("[data-testid=live-panel]")) return setTimeout(follow, 200);
    const classes = { subtree: true, childList: true, attributeFilter: ["class", "disabled"] };
    new MutationObserver(bar).observe(of("#controls"), classes);
    new MutationObserver(stale).observe(of("#whose"), { subtree: true, childList: true });
    new MutationObserver(stale).observe(of("[data-testid=live-panel]"), { attributeFilter: ["data-run"] });
    bar();
    stale();
  };
  follow();

  const whole = (query) => location.origin + location.pathname + (query || "");
  window.llmlabLink = (query) => {
    window.llmlabReady = true;
    show();
    remember("playground", query);
    return query ? whole(query) : "";
  };
  window.llmlabStudyLink = (query) => {
    window.llmlabStudyReady = true;
    remember("studies", query);
    return query ? whole(query) : "";
  };
  window.llmlabLanguage = (run, study) => {
    document.cookie = `llmlab-language=${chinese ? "en" : "zh-CN"}; path=/; max-age=31536000; SameSite=Lax`;
    location.assign(location.pathname + (view() === "studies" ? study : run || location.search));
  };
  window.llmlabCopy = async (query) => {
    const link = (view() === "studies" ? window.llmlabStudyLink : window.llmlabLink)(query);
    try {
      await navigator.clipboard.writeText(link);
    } catch {
      // Without https browsers offer no clipboard; the link stands in the address bar and in the Reproduce tab.
    }
    const button = document.querySelector(view() === "studies" ? "#copy-study-link" : "#copy-link");
    const old = button.textContent;
    button.textContent = words[chinese ? "zh-CN" : "en"].copied;
    setTimeout(() => (button.textContent = old), 1500);
    return link;
  };
})();
