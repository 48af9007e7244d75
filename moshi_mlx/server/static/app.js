// The page: its states in words, its buttons, its settings.

import { Recording, download, subtitles } from "./recording.js";
import { Sound, SoundError } from "./sound.js";
import { Strip, decibels, share } from "./strip.js";
import { Talk } from "./talk.js";
import { Words } from "./words.js";

const $ = (id) => document.getElementById(id);
const PENALTY = ["repetition_penalty", "repetition_penalty_context"];
const SAMPLING = ["text_temperature", "audio_temperature", "text_topk", "audio_topk", "pad_mult", ...PENALTY];
const KEPT = ["microphone", "loudspeaker", "echo", "noise", "gain", "voice", "role", ...SAMPLING, "seed"];
const PREPARING = ["Moshi is getting ready…", "Moshi takes in its voice and its role…"];
const TALKING = "You are connected. Just talk.";

const strip = new Strip($("strip"));
const words = new Words($("words"), () => recording?.seconds ?? 0);
const token = takeToken();
let about = {}, sound = null, talk = null, recording = null, lock = null, saved = {};
let played = { level: 0, drops: 0, underruns: 0 };

// The token of the printed link: out of the address bar, kept for this tab alone.
function takeToken() {
  const url = new URL(location.href);
  const found = new URLSearchParams(url.hash.slice(1)).get("token") ?? url.searchParams.get("token");
  if (found) {
    sessionStorage.setItem("token", found);
    url.hash = "";
    url.searchParams.delete("token");
    history.replaceState(null, "", url.href.replace(/#$/, ""));
  }
  return sessionStorage.getItem("token");
}

async function learn() {
  let answer;
  try {
    answer = await fetch("api/about", { headers: token ? { authorization: `Bearer ${token}` } : {} });
  } catch {
    return problem("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) return problem("This server wants a token. Open the link that it printed when it was started.");
  if (!answer.ok) return problem((await answer.text()).trim());
  about = await answer.json();
  $("model").textContent = about.model;
  $("recorded").hidden = !about.recording;
  $("kept").hidden = about.recording;
  $("persona").hidden = !about.persona;
  if (about.hint) {
    $("hint").textContent = about.hint;
    $("hint").hidden = false;
  }
  if (about.translation) {
    document.querySelector("h1").textContent = "Say it in French.";
    $("tagline").textContent = "Your words come back in English, in a voice like yours, while you are still speaking.";
  }
  for (const name of about.voices) $("voice").append(new Option(name));
  for (const name of SAMPLING) if (name in about.sampling) $(name).placeholder = about.sampling[name];
  restore();
}

// States ---------------------------------------------------------------------------------------------------------------

function show(state, sentence) {
  const going = state !== "idle";
  document.body.dataset.state = state;
  $("talk-label").textContent = going ? "Stop" : "Talk";
  $("status").textContent = sentence;
  $("mute").disabled = !going;
  $("again").disabled = !["talking", "lost"].includes(state);
  $("save").disabled = !recording?.seconds;
  if (going) $("welcome").hidden = true;
  strip.run(going);
}

function problem(sentence) {
  $("problem").textContent = sentence ?? "";
  $("problem").hidden = !sentence;
  if (sentence) $("problem").scrollIntoView({ block: "nearest" });
}

function insecure() {
  if (window.isSecureContext && navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode) return null;
  if (window.isSecureContext) return "This browser has no microphone or no audio worklets. Update it, or use another.";
  return `Browsers give a microphone only to pages from https or from this machine itself, and this one came from ${location.host} without encryption. Start the server with --ssl DIR, where cert.pem and key.pem are; mkcert makes both.`;
}

// The talk -------------------------------------------------------------------------------------------------------------

async function begin() {
  problem(null);
  const refused = insecure();
  if (refused) return problem(refused);
  if (!$("sampling").querySelectorAll("input:invalid").length) keep();
  else return problem("One of the sampling settings is out of its range.");
  show("asking", "Your browser asks whether Moshi may hear the microphone. Please allow it.");
  const mine = (sound = new Sound({
    frame: heard,
    figures: (figures) => (played = figures),
    state: (running) => ($("hear").hidden = running),
    devices: (message) => ($("status").textContent = message),
  }));
  try {
    await mine.open(wishes());
  } catch (error) {
    if (mine === sound) end(error instanceof SoundError ? error.message : `The sound cannot be started: ${error.message}.`);
    return;
  }
  if (mine !== sound) return mine.close();
  shown(mine.given);
  listDevices();
  connect();
}

function connect() {
  recording = new Recording();
  words.begin();
  talk = new Talk(address(), token, {
    state: changed,
    sound: said,
    text: (piece) => {
      words.feed(piece);
      follow();
    },
    figures: lagging,
    latency: (seconds) => (latency = 0.9 * (latency || seconds) + 0.1 * seconds),
  });
}

let latency = 0;

function changed(state, sentence) {
  if (state === "ended" || state === "failed") return end(state === "failed" ? sentence : null, sentence);
  if (state === "lost") {
    sound.clear();
    words.paragraph();
  }
  if (state === "talking") wakeLock();
  if (state === "preparing") sentence = PREPARING[Number(about.persona)];
  show(state, sentence || (state === "talking" ? TALKING : ""));
}

function end(sentence = null, status = "The talk has ended.") {
  talk?.stop();
  sound?.close();
  words.flush();
  talk = sound = null;
  lock?.release().catch(() => {});
  lock = null;
  $("hear").hidden = true;
  mute(false);
  figures(true);
  levels("you", -60);
  levels("moshi", -60);
  problem(sentence);
  show("idle", sentence ? "" : status);
}

function again() {
  talk.stop();
  sound.clear();
  words.flush();
  connect();
}

function heard(frame) {
  levels("you", decibels(frame));
  strip.add("you", frame);
  if (!talk) return;
  if (talk.open) recording.heard(frame);
  talk.send(frame);
}

function said(samples) {
  levels("moshi", decibels(samples));
  strip.add("moshi", samples, 1000 * played.level);
  recording.said(samples);
  sound?.play(samples);
}

function lagging(told) {
  const behind = told.dropped > 0 && !told.keeps_up;
  if (document.body.dataset.state !== "talking") return;
  if (behind) {
    $("status").textContent = `Moshi is too slow on this machine: it takes ${Math.round(told.step_ms)} ms for every 80 ms, so some of what you say is left out.`;
  } else if (told.lag_ms > 400) {
    $("status").textContent = `Moshi is ${(told.lag_ms / 1000).toFixed(1)} s behind.`;
  } else if (latency > 1) {
    $("status").textContent = `The network is slow: each of you hears the other ${latency.toFixed(1)} s late.`;
  } else if (/behind|slow/.test($("status").textContent)) {
    $("status").textContent = TALKING;
  }
}

function mute(on) {
  if (sound) sound.muted = on;
  $("mute").setAttribute("aria-pressed", on);
  $("mute").textContent = on ? "Muted" : "Mute";
  if (talk?.open) $("status").textContent = on ? "Muted: Moshi hears silence." : TALKING;
}

// Figures --------------------------------------------------------------------------------------------------------------

function levels(id, db) {
  const meter = $(id);
  meter.style.setProperty("--level", share(db).toFixed(2));
  const now = performance.now();
  if (now - (meter.told ?? 0) < 500) return;
  meter.told = now;
  meter.setAttribute("aria-valuenow", Math.round(db));
  meter.setAttribute("aria-valuetext", db < -50 ? "silent" : `${Math.round(db)} decibels`);
}

function figures(clear = false) {
  if (clear) latency = 0;
  const known = talk?.open && latency && !clear;
  const whole = known && latency + played.level + sound.delay + 0.08;
  $("latency").textContent = known ? `${Math.round(1000 * whole)} ms` : "–";
  $("buffer").textContent = known ? `${Math.round(1000 * played.level)} ms` : "–";
  const dropped = known ? talk.dropped + Math.round(played.drops / 0.08) : 0;
  $("dropped").textContent = known ? dropped : "–";
  $("dropped").classList.toggle("bad", dropped > 0);
  $("save").disabled = !recording?.seconds;
}

setInterval(() => talk && figures(), 500);

function follow() {
  const page = document.querySelector(".page");
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 160) page.scrollTop = page.scrollHeight;
}

new MutationObserver(follow).observe($("words"), { childList: true, subtree: true });

// Settings -------------------------------------------------------------------------------------------------------------

function wishes() {
  const [echo, noise, gain] = ["echo", "noise", "gain"].map((id) => $(id).checked);
  return { microphone: $("microphone").value, loudspeaker: $("loudspeaker").value, echo, noise, gain };
}

function address() {
  const url = new URL("api/chat", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = url.hash = "";
  const query = { audio: "pcm_s16le", figures: 1 };
  for (const name of SAMPLING) if ($(name).value) query[name] = $(name).value;
  // One of them alone would say nothing.
  if (PENALTY.some((name) => query[name])) for (const name of PENALTY) query[name] ??= $(name).placeholder;
  if ($("seed").value) query.text_seed = query.audio_seed = $("seed").value;
  if (about.persona) {
    if ($("voice").value) query.voice_prompt = $("voice").value;
    if ($("role").value.trim()) query.text_prompt = $("role").value.trim();
  }
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url;
}

function shown(given) {
  const names = { echo: "echoCancellation", noise: "noiseSuppression", gain: "autoGainControl" };
  for (const [id, name] of Object.entries(names)) {
    const value = given[name];
    $(`${id}-given`).textContent = value === undefined ? "" : value ? "given" : "not given";
  }
}

async function listDevices() {
  const found = await navigator.mediaDevices.enumerateDevices();
  for (const [id, kind] of [["microphone", "audioinput"], ["loudspeaker", "audiooutput"]]) {
    const select = $(id), value = select.value || saved[id];
    const options = found.filter((d) => d.kind === kind && d.deviceId && d.deviceId !== "default");
    select.replaceChildren(new Option("The usual one", ""), ...options.map((d) => new Option(d.label || "Unnamed", d.deviceId)));
    if (options.some((d) => d.deviceId === value)) select.value = value;
  }
}

function keep() {
  saved = Object.fromEntries(KEPT.map((id) => [id, $(id).type === "checkbox" ? $(id).checked : $(id).value]));
  try {
    localStorage.setItem("moshi", JSON.stringify(saved));
  } catch {
    // A browser that keeps nothing is no reason not to talk.
  }
}

function restore() {
  try {
    saved = JSON.parse(localStorage.getItem("moshi") ?? "{}");
  } catch {
    saved = {};
  }
  for (const id of KEPT) {
    if (!(id in saved)) continue;
    if ($(id).type === "checkbox") $(id).checked = saved[id];
    else $(id).value = saved[id];
  }
}

async function wakeLock() {
  lock = (await navigator.wakeLock?.request("screen").catch(() => null)) ?? null;
}

async function save() {
  words.flush();
  const name = `moshi-${new Date().toISOString().slice(0, 19).replace(/[T:]/g, "-")}`;
  download(recording.wav(), `${name}.wav`);
  download(new Blob([subtitles(words.spoken)], { type: "text/vtt" }), `${name}.vtt`);
  $("status").textContent = "Saved: the sound of both sides, and the words with their times.";
}

$("talk").onclick = () => (document.body.dataset.state === "idle" ? begin() : end());
$("hear").onclick = () => sound?.resume();
$("mute").onclick = () => mute($("mute").getAttribute("aria-pressed") !== "true");
$("again").onclick = again;
$("save").onclick = save;
for (const id of ["microphone", "loudspeaker", "echo", "noise", "gain"]) {
  $(id).onchange = async () => {
    keep();
    await sound?.change(wishes());
    if (sound) shown(sound.given);
  };
}
$("loudspeaker-row").hidden = !("setSinkId" in (window.AudioContext ?? Object).prototype);
navigator.mediaDevices?.addEventListener?.("devicechange", listDevices);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible" || !sound) return;
  sound.resume()?.catch(() => {});
  if (talk?.open) wakeLock();
});
show("idle", "Ready when you are.");
// A talk begun before the kept settings are back would begin without them, and keep that.
learn().finally(() => ($("talk").disabled = false));
