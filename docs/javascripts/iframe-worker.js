// A page that is opened from the disk may start no worker, and the search is one. This runs the
// worker's script in a hidden frame instead, and passes messages to it and back.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const base = new URL(url, document.baseURI)
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map(src => new Promise((done, fail) => {
        const script = inside.document.createElement("script")
        script.src = new URL(src, base)
        script.onload = done
        script.onerror = fail
        inside.document.body.appendChild(script)
      })))
      this.inside = inside
      this.ready = inside.importScripts(base.href)
    }
    set onmessage(listener) {
      this.addEventListener("message", listener)
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
    terminate() {}
  }
}
