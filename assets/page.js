() => {
  // Runs once, after Gradio has mounted the page: theme, keys, deep links, phones, names for nameless buttons.
  const PAGES = ["data", "train", "runs", "chat", "export", "doctor"];
  const THEME = "qlora-studio-theme";
  const NARROW = 800;

  const applyTheme = (dark) => {
    document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  };
  const kept = localStorage.getItem(THEME);
  if (kept) applyTheme(kept === "dark");
  window.studioSwitchTheme = () => {
    const dark = !document.body.classList.contains("dark");
    applyTheme(dark);
    localStorage.setItem(THEME, dark ? "dark" : "light");
  };

  const open = (page) => document.getElementById(`tab-${page}-button`)?.click();
  const asked = () => location.hash.slice(1);
  addEventListener("keydown", (event) => {
    const page = PAGES[Number(event.key) - 1];
    if (event.altKey && !event.ctrlKey && page) {
      event.preventDefault();
      open(page);
    }
  });
  const follow = () => {
    const button = document.querySelector('#pages > .tab-wrapper [role="tab"][aria-selected="true"]');
    const page = button?.id.replace(/^tab-|-button$/g, "");
    if (page && PAGES.includes(page) && asked() !== page) history.replaceState(null, "", `#${page}`);
  };
  addEventListener("hashchange", () => PAGES.includes(asked()) && open(asked()));

  // Gradio leaves the send button of a text box without a name.
  const nameButtons = () => {
    for (const [part, name] of [["submit", "Send"], ["stop", "Stop the answer"]]) {
      document.querySelectorAll(`#chat-message .${part}-button`).forEach((button) => {
        if (!button.ariaLabel) button.ariaLabel = name;
      });
    }
  };

  // Every open tab holds one of the browser's six connections to the studio; with too many, all of them wait.
  const channel = new BroadcastChannel("qlora-studio");
  const others = new Set();
  const self = crypto.randomUUID();
  channel.onmessage = ({ data }) => {
    if (data.here) others.add(data.here);
    if (data.asks) channel.postMessage({ here: self });
    if (data.gone) others.delete(data.gone);
    document.documentElement.dataset.crowded = others.size >= 3 ? "1" : "";
  };
  channel.postMessage({ asks: true, here: self });
  addEventListener("pagehide", () => channel.postMessage({ gone: self }));

  if (PAGES.includes(asked())) open(asked());
  const tabs = document.querySelector("#pages");
  if (tabs) {
    new MutationObserver(() => {
      follow();
      nameButtons();
    }).observe(tabs, { subtree: true, childList: true, attributeFilter: ["aria-selected"] });
  }
  nameButtons();
  if (innerWidth < NARROW) document.querySelector(".sidebar.open .toggle-button")?.click();
  document.documentElement.dataset.ready = "1"; // only now do clicks reach the studio
}
