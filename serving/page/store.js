/* Kept takes, in this browser's own database (IndexedDB). */

const NAME = "backline", TAKES = "takes";

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function takes(mode, use) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(TAKES, { keyPath: "id" });
  const database = await done(opening);
  try {
    const transaction = database.transaction(TAKES, mode);
    const finished = new Promise((resolve, reject) => { transaction.oncomplete = resolve; transaction.onabort = () => reject(transaction.error); });
    const [answer] = await Promise.all([done(use(transaction.objectStore(TAKES))), finished]);
    return answer;
  } finally { database.close(); }
}

export const keptTakes = () => takes("readonly", store => store.getAll());
export const forget = id => takes("readwrite", store => store.delete(id));

/** Throws with a remedy when the browser gives no room. */
export async function keep(record) {
  try {
    await takes("readwrite", store => store.put(record));
    navigator.storage?.persist?.(); // asks the browser not to clear it away; either answer is well
  } catch (fault) {
    if (fault.name === "QuotaExceededError") throw new Error("this browser has no room for it: delete other kept takes, or download the stems");
    throw fault;
  }
}
