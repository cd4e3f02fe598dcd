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
// Only salts the hashes of a parser, and no stranger's text is parsed.
globalThis.crypto ??= { getRandomValues: (array) => array.fill(7) };
