// The few things of a browser that Graphviz asks for, for engines that have none. Its texts are ASCII.
"use strict";
globalThis.location ??= { href: "" };
globalThis.TextDecoder ??= class {
  decode(bytes) {
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    return text;
  }
};
