// A page that was opened from the disk may start no Worker: a frame runs the search's script in its place.
if (location.protocol === "file:") {
  // The theme's script looks for this name in its parent, to find its own address.
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const scope = frame.contentWindow;
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      scope.importScripts = (...urls) =>
        urls.reduce((loaded, next) => loaded.then(() => this.#run(scope, next)), Promise.resolve());
      this.frame = frame;
      this.ready = this.#run(scope, url);
    }

    #run(scope, url) {
      const script = scope.document.createElement("script");
      script.src = url;
      return new Promise((loaded, failed) => {
        script.onload = loaded;
        script.onerror = failed;
        scope.document.head.append(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
