// What nostr-tools makes of a request: JSON lines in, `{"ok": ...}` or `{"refused": true}` out.
// usage: node nostr_peer.cjs FOLDER-IT-IS-INSTALLED-IN
const { createRequire } = require("node:module");
const { join } = require("node:path");
const { createInterface } = require("node:readline");

const load = createRequire(join(process.argv[2], "package.json"));
const [pure, nip04, nip06, nip19, nip44, nip98] = ["pure", "nip04", "nip06", "nip19", "nip44", "nip98"].map((name) =>
  load(`nostr-tools/${name}`),
);
const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hex = (data) => (typeof data === "string" ? data : Buffer.from(data).toString("hex"));

const verbs = {
  public: ({ secret }) => pure.getPublicKey(bytes(secret)),
  finish: ({ secret, event }) => pure.finalizeEvent(event, bytes(secret)),
  verify: ({ event }) => pure.verifyEvent(event),
  key: ({ secret, public: other }) => hex(nip44.getConversationKey(bytes(secret), other)),
  encrypt: ({ text, key }) => nip44.encrypt(text, bytes(key)),
  decrypt: ({ payload, key }) => nip44.decrypt(payload, bytes(key)),
  encrypt04: ({ text, secret, public: other }) => nip04.encrypt(secret, other, text),
  npub: ({ key }) => nip19.npubEncode(key),
  nsec: ({ key }) => nip19.nsecEncode(bytes(key)),
  decode: ({ text }) => ((found) => [found.type, hex(found.data)])(nip19.decode(text)),
  token: ({ secret, url, method, payload }) =>
    nip98.getToken(url, method, (draft) => pure.finalizeEvent(draft, bytes(secret)), true, payload),
  check: ({ token, url, method, payload }) =>
    nip98.unpackEventFromToken(token).then((event) => nip98.validateEvent(event, url, method, payload)),
  words: () => nip06.generateSeedWords(),
  account: ({ words, passphrase, account }) => hex(nip06.privateKeyFromSeedWords(words, passphrase, account)),
};

const answer = async (line) => {
  const request = JSON.parse(line);
  try {
    return { ok: await verbs[request.verb](request) };
  } catch {
    return { refused: true };
  }
};
let before = Promise.resolve();
createInterface({ input: process.stdin }).on("line", (line) => {
  before = before.then(async () => process.stdout.write(`${JSON.stringify(await answer(line))}\n`));
});
