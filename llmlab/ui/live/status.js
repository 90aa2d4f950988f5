// The line above everything: what the run is doing, how far it is, on what; and what went wrong.

import { el, hide, put } from "./dom.js";
import { fixed, known, say } from "./words.js";

const MEGABYTE = 2 ** 20; // a total above this counts bytes

export class Status {
  constructor(state) {
    this.state = state;
    this.node = el("div", "status");
    this.told = el("span");
    this.progress = el("progress");
    this.about = el("span", "about");
    this.node.append(el("span", "dot"), this.told, this.progress, this.about);
    this.alert = el("div", "alert", undefined, { role: "alert" });
    this.alertTitle = el("b");
    this.alertText = el("span");
    this.alert.append(this.alertTitle, this.alertText);
  }

  draw() {
    const { state } = this;
    const last = state.lanes[state.lanes.length - 1];
    const [text, progress] = this.words(last);
    put(this.told, text);
    this.node.className = `status ${state.status}`;
    this.progress.hidden = !(progress?.[1] > 0);
    if (!this.progress.hidden) {
      this.progress.setAttribute("aria-label", text);
      this.progress.max = progress[1];
      this.progress.value = Math.min(progress[0], progress[1]);
    }
    const [model = "", ...rest] = last?.about ?? [];
    put(this.about, [folderName(model), ...rest].filter(Boolean).join(" · "));
    this.about.title = model;
    const failed = state.failed || (state.status === "error" ? state.note : "");
    hide(this.alert, !failed);
    put(this.alertTitle, failed ? say("error") : "");
    put(this.alertText, failed);
  }

  // Which run of an A/B is on; nothing once both have ended and only their quality is left to measure.
  which(last) {
    const { twice, lanes } = this.state;
    if (!twice || (lanes.length > 1 && last.reason)) return "";
    return say(lanes.length > 1 || last?.reason ? "ab_stack" : "ab_baseline");
  }

  // What is going on, and where it can be counted [done, total].
  words(last) {
    const { status, note, lost, verdict } = this.state;
    const judged = verdict ? ` · ${say(`verdict_${verdict.verdict}`)}` : "";
    if (lost) return [say("lost")];
    if (status === "queued") return [waiting(note)];
    if (status === "running") {
      const [text, progress] = running(note, last);
      const which = this.which(last);
      return [which ? `${which} · ${text}` : text, progress];
    }
    if (status === "done") return [ended(note, last) + judged];
    return [(status === "recorded" && note ? `${say("recorded")}: ${note}` : say(status)) + judged];
  }
}

// A model may be a folder or a file, whose path would fill the line.
const folderName = (model) => model.replace(/^(~|\/|[A-Za-z]:[\\/]).*[\\/](?=.)/, "");

// "waiting:N" or "waiting:N:seconds": how many are before this one, and for how long.
function waiting(note) {
  const [n, s] = note.startsWith("waiting:") ? note.slice(8).split(":") : [0];
  const place = n > 0 ? (n === "1" ? say("waiting_1") : say("waiting", { n })) : say("queued");
  return s === undefined ? place : `${place} · ${say("waiting_about", { s })}`;
}

function running(note, last) {
  if (note === "stopping") return [say("stopping")];
  const parts = note.split("|");
  if (parts.length === 3) {
    const [what, done, total] = [parts[0], Number(parts[1]), Number(parts[2])];
    const unit = (n) => fixed(total > MEGABYTE ? n / 1e6 : n, 0);
    const far = total > 0 ? ` · ${unit(done)} / ${unit(total)}${total > MEGABYTE ? " MB" : ""}` : " …";
    return [(known(what) ? say(what) : what) + far, [done, total]];
  }
  if (!last) return [say("preparing")];
  if (last.passes.length) return [say("running")];
  return [say("prefill"), last.prefill && [last.prefill.done, last.prefill.total]];
}

function ended(note, last) {
  if (note === "stopped" || last?.reason === "stopped") return say("stopped");
  return last && known(last.reason) ? say(last.reason) : say("done");
}
