"use strict";
// Plays a video from segments that the server makes on request. Only a few seconds ahead of the
// current time are requested: a paused, hidden or closed page costs the server nothing.

const AHEAD = 8; // seconds that are fetched before they are shown
const AHEAD_PAUSED = 2;
const AHEAD_SLOW = 60; // also while paused, where decoding is slower than playing
const BEHIND = 30; // seconds that are kept after they were shown
const COLORS = ["--key", "--layer1", "--layer2", "--layer3", "--layer4"];

const element = (id) => document.getElementById(id);
const media = document.querySelector("main").dataset.media;
const video = element("video");
const viewer = Math.random().toString(36).slice(2);
const strips = new Map(); // segment number -> its frames
let info;
let automatic = "full";
let slow = false; // whether this machine cannot play the file as fast as it should

function tell(text) {
  element("trouble").textContent = text;
}

async function fetched(path, signal) {
  const answer = await fetch(`${media}/${path}`, { signal });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `${path}: ${answer.status}`);
  return answer;
}

// One track: fetches, in order, the segments that are missing ahead, and appends them.
class Track {
  constructor(source, kind, type) {
    this.kind = kind;
    this.buffer = source.addSourceBuffer(type);
    this.type = type;
    this.head = null; // name of the step whose init segment was appended last
    this.busy = null;
    this.done = new Map(); // segment number -> step it is there in
  }

  folder() {
    return this.kind === "video" ? `video/${chosen()}` : "audio";
  }

  changed(operation) {
    return new Promise((resolve, reject) => {
      this.buffer.addEventListener("updateend", resolve, { once: true });
      this.buffer.addEventListener("error", () => reject(new Error("the browser refuses a segment")), { once: true });
      operation();
    });
  }

  has(number) {
    const [start, stop] = info.segments[number];
    if (!this.done.has(number)) return false;
    if (this.done.get(number) === "empty") return true;
    const middle = (start + stop) / 2; // the browser may have thrown it out
    for (let i = 0; i < this.buffer.buffered.length; i++)
      if (this.buffer.buffered.start(i) <= middle && middle <= this.buffer.buffered.end(i)) return true;
    return false;
  }

  next() {
    let ahead = video.paused ? AHEAD_PAUSED : AHEAD;
    if (slow) ahead = AHEAD_SLOW;
    if (document.hidden) ahead = AHEAD_PAUSED;
    for (let n = segmentAt(video.currentTime); n < info.segments.length; n++) {
      if (info.segments[n][0] > video.currentTime + ahead) return null;
      // Audio waits for the frames that belong to it: a browser would play on without them.
      if (this !== tracks[0] && !tracks[0].has(n)) return null;
      if (!this.has(n)) return n;
    }
    return null;
  }

  async pump() {
    if (this.busy) return;
    const number = this.next();
    if (number === null) return;
    const control = new AbortController();
    this.busy = { number, control };
    try {
      const folder = this.folder();
      if (this.head !== folder) {
        const init = await (await fetched(`${folder}/init.mp4`, control.signal)).arrayBuffer();
        await this.changed(() => this.buffer.appendBuffer(init));
        this.head = folder;
      }
      const answer = await fetched(`${folder}/${number}.m4s?viewer=${viewer}`, control.signal);
      const data = await answer.arrayBuffer();
      if (this.kind === "video") heed(answer, number);
      if (data.byteLength) await this.changed(() => this.buffer.appendBuffer(data));
      this.done.set(number, data.byteLength ? folder : "empty");
      await this.forget();
      tell("");
    } catch (error) {
      if (error.name !== "AbortError") {
        tell(error.message);
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    } finally {
      this.busy = null;
    }
    tracks.forEach((track) => track.pump());
    finish();
  }

  async forget() {
    const end = video.currentTime - BEHIND;
    if (end > 0 && this.buffer.buffered.length && this.buffer.buffered.start(0) < end - 5)
      await this.changed(() => this.buffer.remove(0, end));
  }

  // After a jump: what is being fetched is not wanted any more.
  turn() {
    const near = segmentAt(video.currentTime);
    if (this.busy && (this.busy.number < near || this.busy.number > near + 2)) this.busy.control.abort();
    this.pump();
  }

  // Another quality: what waits ahead is fetched anew.
  async renew() {
    if (this.busy) this.busy.control.abort();
    while (this.busy || this.buffer.updating) await new Promise((resolve) => setTimeout(resolve, 20));
    const from = segmentAt(video.currentTime);
    for (const n of [...this.done.keys()]) if (n >= from) this.done.delete(n);
    this.pump();
  }
}

let tracks = [];
let source;

function finish() {
  const last = info.segments.length - 1;
  const whole = tracks.every((track) => track.has(last) && !track.busy && !track.buffer.updating);
  if (whole && source.readyState === "open") source.endOfStream();
}

function quality() {
  const value = element("step").value;
  return value === "auto" ? automatic : value;
}

// Steps in another look than the natural one, and with new frames, have names of their own.
function chosen() {
  const look = element("look").value;
  return quality() + (look && look !== info.looks[0] ? `-${look}` : "") + (element("smooth").checked ? "-smooth" : "");
}

function nameOf(step) {
  const levels = info.levels > 1 ? `, ${step.levels} of ${info.levels} quality levels` : "";
  const rate = Number((step.rate * (element("smooth").checked ? 2 : 1)).toFixed(2));
  return `${step.size}, ${rate} frames/s${levels}`;
}

// The server measures how fast it is and advises the step for the next segment.
function heed(answer, number) {
  const speed = Number(answer.headers.get("vcfilter-speed"));
  automatic = answer.headers.get("vcfilter-advice") || automatic;
  warnOfSpeed(Number(answer.headers.get("vcfilter-quickest")));
  const step = info.steps.find((each) => each.name === quality());
  const [start, stop, size] = info.segments[number];
  element("status").textContent =
    `${nameOf(step)}; ${speed ? `decoding at ${speed.toFixed(2)} times playing speed; ` : ""}` +
    `${((8 * size) / (stop - start) / 1000).toFixed(0)} kbit/s`;
}

// Every step is slower than playing: say so, and what helps.
function warnOfSpeed(quickest) {
  slow = quickest > 0 && quickest < 1;
  element("slow").textContent = slow
    ? `This machine decodes the file at ${quickest.toFixed(2)} times playing speed at most: playing will stop and ` +
      `wait. Pause for a while and up to ${AHEAD_SLOW} seconds are decoded ahead, or decode it once: ` +
      `vcfilter decode ${info.name} decoded.mp4`
    : "";
}

function segmentAt(time) {
  let low = 0;
  let high = info.segments.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (info.segments[middle][0] <= time + 1e-4) low = middle;
    else high = middle - 1;
  }
  return low;
}

// --- the strips ---------------------------------------------------------------------------------

async function load(number) {
  const found = await (await fetched(`frames/${number}.json`)).json();
  strips.get(number).found = found;
}

async function strip(number) {
  if (number < 0 || number >= info.segments.length) return null;
  if (!strips.has(number)) strips.set(number, { loading: load(number) });
  await strips.get(number).loading;
  return strips.get(number).found;
}

function canvas(id) {
  const target = element(id);
  const [width, height] = [target.clientWidth, target.clientHeight].map((n) => Math.round(n * devicePixelRatio));
  if (target.width !== width || target.height !== height) [target.width, target.height] = [width, height];
  const context = target.getContext("2d");
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function color(layer) {
  return getComputedStyle(document.documentElement).getPropertyValue(COLORS[Math.min(layer, 4)]);
}

function nearby() {
  const here = segmentAt(video.currentTime);
  const frames = [];
  for (const n of [here - 1, here, here + 1]) {
    const found = strips.get(n)?.found;
    if (found) found.frames.forEach((frame, i) => frames.push([found.first + i, ...frame]));
    else strip(n).catch((error) => tell(error.message));
  }
  return frames;
}

function draw() {
  if (!info) return;
  const frames = nearby();
  const span = 2; // seconds to each side
  const now = video.currentTime;
  const [context, width, height] = canvas("strip");
  const shown = frames.filter((frame) => Math.abs(frame[1] - now) <= span);
  const most = Math.max(1, ...shown.map((frame) => frame[2]));
  const bar = Math.max(1, (width / (2 * span)) * (info.seconds / info.frames) - 1);
  const current = frames.filter((frame) => frame[1] <= now + 1e-3).pop();
  for (const [index, time, size, layer] of shown) {
    context.fillStyle = color(layer);
    context.globalAlpha = current && index === current[0] ? 1 : 0.75;
    const tall = Math.max(2, (height - 4) * Math.sqrt(size / most));
    context.fillRect(((time - now + span) / (2 * span)) * width, height - tall, bar, tall);
  }
  context.globalAlpha = 1;
  context.fillStyle = "#fff";
  context.fillRect(width / 2, 0, 1, height);
  if (current) {
    const [index, , size, layer, qp] = current;
    context.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    const kind = layer ? `inter, layer ${layer}` : "keyframe";
    context.fillText(`frame ${index}: ${kind}, qp ${qp}, ${size} bytes`, 6, 14 * devicePixelRatio);
  }
  const [whole, wide, tall] = canvas("overview");
  const rates = info.segments.map(([start, stop, size]) => size / Math.max(1e-3, stop - start));
  const top = Math.max(...rates, 1);
  info.segments.forEach(([start, stop], n) => {
    whole.fillStyle = tracks.length && tracks[0].has(n) ? "#6f8fb5" : "#3c4b60";
    const left = (start / info.seconds) * wide;
    const right = (stop / info.seconds) * wide;
    const up = Math.max(2, (rates[n] / top) * (tall - 2));
    whole.fillRect(left, tall - up, Math.max(1, right - left - 1), up);
  });
  whole.fillStyle = "#fff";
  whole.fillRect((now / info.seconds) * wide, 0, 2, tall);
}

function loop() {
  draw();
  requestAnimationFrame(loop);
}

// --- beside x264 --------------------------------------------------------------------------------

let comparing = null;

async function beside() {
  const against = element("against").value;
  const on = element("compare").checked;
  element("beside").hidden = !on;
  video.hidden = on;
  if (comparing) comparing.abort();
  if (!on) return;
  video.pause();
  const control = (comparing = new AbortController());
  element("ours-text").textContent = "decoding …";
  element("theirs-text").textContent = against === "x264" ? "coding with x264 …" : "decoding …";
  try {
    await strip(segmentAt(video.currentTime));
    const current = nearby().filter((frame) => frame[1] <= video.currentTime + 1e-3).pop();
    const place = `compare/${current ? current[0] : 0}.json`;
    const query = against === "x264" ? "" : `?look=${against}`;
    const found = await (await fetched(place + query, control.signal)).json();
    if (control.signal.aborted) return;
    element("beside").dataset.frame = found.frame;
    if (against !== "x264") {
      const natural = info.looks[0];
      element("ours").src = found[natural].image;
      element("theirs").src = found[against].image;
      element("ours-text").textContent = `frame ${found.frame}, ${natural}`;
      element("theirs-text").textContent = `frame ${found.frame}, ${against}`;
      tell("");
      return;
    }
    element("ours").src = found.vcfilter.image;
    element("theirs").src = found.x264.image;
    const psnr = (side) => (side.psnr === undefined ? "" : `, this frame ${side.psnr} dB`);
    element("ours-text").textContent =
      `vcfilter, frame ${found.frame}: ${found.vcfilter.bytes} bytes for ${found.frames} frames${psnr(found.vcfilter)}`;
    element("theirs-text").textContent =
      `x264 medium, crf ${found.x264.crf}: ${found.x264.bytes} bytes for the same frames${psnr(found.x264)}; ` +
      (found.original ? `coded from ${found.original}` : "coded from vcfilter's frame, as the original is not here");
    tell("");
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
}

function step(direction) {
  video.pause();
  const frames = nearby();
  const at = frames.findLastIndex((frame) => frame[1] <= video.currentTime + 1e-3);
  const target = frames[at + direction];
  if (target) video.currentTime = target[1] + 0.001;
}

// --- start --------------------------------------------------------------------------------------

async function start() {
  info = await (await fetched("info.json")).json();
  automatic = info.advice;
  for (const each of info.steps) {
    const option = new Option(nameOf(each), each.name);
    element("step").add(option);
  }
  for (const look of info.looks) {
    element("look").add(new Option(look, look));
    if (look !== info.looks[0]) element("against").add(new Option(`the look ${look}`, look));
  }
  element("looks").hidden = info.looks.length < 2;
  element("facts").textContent =
    `${info.coded}; ${info.frames} frames, ${info.seconds.toFixed(2)} s, ` +
    `${((8 * info.bytes) / info.seconds / 1000).toFixed(0)} kbit/s; model ${info.model}; ` +
    `audio: ${info.audio ? info.audio.codec : "none"}`;
  const Source = window.ManagedMediaSource || window.MediaSource;
  if (!Source || !Source.isTypeSupported(info.steps[0].type)) {
    element("smooth").disabled = true;
    video.src = `${media}/master.m3u8`; // Safari on telephones, and whatever else reads HLS itself
  } else {
    source = new Source();
    video.disableRemotePlayback = true;
    video.src = URL.createObjectURL(source);
    await new Promise((resolve) => source.addEventListener("sourceopen", resolve, { once: true }));
    source.duration = info.seconds;
    tracks = [new Track(source, "video", info.steps[0].type)];
    if (info.audio && Source.isTypeSupported(info.audio.type))
      tracks.push(new Track(source, "audio", info.audio.type));
    else if (info.audio) tell(`this browser plays no ${info.audio.codec}: without audio`);
    const pump = () => tracks.forEach((track) => track.pump());
    video.addEventListener("timeupdate", pump);
    video.addEventListener("play", pump);
    video.addEventListener("waiting", pump);
    video.addEventListener("seeking", () => tracks.forEach((track) => track.turn()));
    for (const id of ["step", "smooth", "look"]) element(id).addEventListener("change", () => tracks[0].renew());
    pump();
  }
  video.addEventListener("seeked", () => element("compare").checked && beside());
  element("compare").addEventListener("change", beside);
  element("against").addEventListener("change", beside);
  element("back-frame").addEventListener("click", () => step(-1));
  element("next-frame").addEventListener("click", () => step(1));
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  element("overview").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    video.currentTime = ((event.clientX - box.left) / box.width) * info.seconds;
  });
  loop();
}

start().catch((error) => tell(error.message));
