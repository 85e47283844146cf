import GGUF
import KVStore
import Model

/// Which model, formats and layout a prefix belongs to.
///
/// Hashes all metadata, the directory of tensors, and of every tensor the first, the middle and the
/// last 4 KiB: enough to tell any two trained, tuned or quantised files apart in a blink, where all
/// 81 GB would take minutes. A file edited by hand in between would not be noticed.
/// `content`, where a manifest binds it, names every byte and takes the place of all that.
/// The backend is not part of it: all keep the same bytes, and go on from each other's.
func modelIdentity(_ file: GGUFFile, _ c: Configuration, _ formats: KVFormats, content: String?) -> ChunkKey {
    let sampleBytes = 4096
    var hash = SHA1()
    func add(_ text: String) { hash.update(Array(text.utf8) + [0]) }
    add("pyds4 kv")
    add(KVCache.layout(c, formats))
    add("roundings \(formats.roundings)")
    if let content {
        add("content \(content)")
        return hash.finish()
    }
    for entry in file.metadata {
        add("\(entry.key) \(entry.value.typeName) \(entry.value.count)")
        entry.value.withBytes { hash.update($0) }
    }
    defer { withExtendedLifetime(file) {} }
    for tensor in file.tensors {
        add("\(tensor.name) \(tensor.type) \(tensor.shape)")
        let bytes = UnsafeRawBufferPointer(start: tensor.pointer, count: tensor.byteCount)
        let last = max(0, bytes.count - sampleBytes)
        for start in [0, last / 2, last] {
            hash.update(UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + sampleBytes, bytes.count)]))
        }
    }
    return hash.finish()
}
