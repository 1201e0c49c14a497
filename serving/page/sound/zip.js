/* ZIP files whose entries are stored, not deflated: an entry is then a slice of the blob, and nothing is copied. */

const END = 0x06054b50, CENTRAL = 0x02014b50, END_BYTES = 22, CENTRAL_BYTES = 46, LOCAL_BYTES = 30;

const part = async (blob, start, end) => new DataView(await blob.slice(start, end).arrayBuffer());

/** name → blob of each entry (APPNOTE 4.3.7, 4.3.12, 4.3.16). */
export async function entriesOf(blob, type = "audio/wav") {
  const from = Math.max(0, blob.size - END_BYTES - 65535), tail = await part(blob, from, blob.size);
  let end = tail.byteLength - END_BYTES;
  while (end >= 0 && tail.getUint32(end, true) !== END) end--;
  if (end < 0) throw new Error("the service's answer is not a ZIP file");
  const count = tail.getUint16(end + 10, true), start = tail.getUint32(end + 16, true);
  const directory = await part(blob, start, start + tail.getUint32(end + 12, true)), entries = new Map();
  for (let n = 0, at = 0; n < count; n++) {
    if (directory.getUint32(at, true) !== CENTRAL || directory.getUint16(at + 10, true) !== 0) throw new Error("the service's ZIP file is not a stored one");
    const size = directory.getUint32(at + 20, true), nameBytes = directory.getUint16(at + 28, true), local = directory.getUint32(at + 42, true);
    const name = new TextDecoder().decode(new Uint8Array(directory.buffer, at + CENTRAL_BYTES, nameBytes));
    const header = await part(blob, local, local + LOCAL_BYTES);
    const data = local + LOCAL_BYTES + header.getUint16(26, true) + header.getUint16(28, true);
    entries.set(name, blob.slice(data, data + size, type));
    at += CENTRAL_BYTES + nameBytes + directory.getUint16(at + 30, true) + directory.getUint16(at + 32, true);
  }
  return entries;
}
