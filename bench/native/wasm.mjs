// Runs a WebAssembly program under WASI with the current folder as its own: node wasm.mjs PROGRAM.wasm
import { readFile } from "node:fs/promises";
import { argv, cwd, exit } from "node:process";
import { WASI } from "node:wasi";

const wasi = new WASI({ version: "preview1", preopens: { ".": cwd() }, returnOnExit: true });
const { instance } = await WebAssembly.instantiate(await readFile(argv[2]), wasi.getImportObject());
exit(wasi.start(instance));
