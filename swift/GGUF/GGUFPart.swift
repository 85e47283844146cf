/// One physical file: header, metadata, directory of tensors. A model is one of these or, when it
/// is split, several.
///
///     magic "GGUF" · version u32 · tensor count u64 · metadata count u64
///     metadata     key · value type u32 · value
///     directory    name · dimension count u32 · dimensions u64 · type u32 · offset u64
///     padding to a multiple of general.alignment
///     data         each tensor at its offset from here
///
/// Source: the GGUF specification in ggml's docs/gguf.md.
struct GGUFPart {
    let bytes: GGUFBytes
    let version: UInt32
    let metadata: [GGUFEntry]
    let indexByKey: [String: Int]
    let alignment: Int
    /// Directory entries in file order, their data checked to lie in the file without overlap.
    let records: [TensorRecord]
    /// Where offsets of tensors count from.
    let dataStart: Int

    static let defaultAlignment = 32
    static let headerByteCount = 24

    init(_ bytes: GGUFBytes) throws(GGUFError) {
        var reader = GGUFReader(bytes)
        self.bytes = bytes
        version = try Self.readVersion(&reader)

        let tensorCountOffset = reader.offset
        _ = try reader.integer(UInt64.self, "tensor count")
        let entryCount = try reader.count(minimumSize: 8 + 1 + 4 + 1, "metadata count")
        // The directory comes after the metadata, so this count can only now be compared with the
        // whole rest of the file; it is compared again when the directory is reached.
        var countReader = GGUFReader(bytes, range: tensorCountOffset..<bytes.buffer.count)
        let tensorCount = try countReader.count(
            minimumSize: TensorRecord.minimumByteCount, "tensor count")

        var metadata: [GGUFEntry] = []
        var indexByKey: [String: Int] = [:]
        for i in 0..<entryCount {
            let start = reader.offset
            let key = try reader.name("metadata key \(i)")
            guard indexByKey.updateValue(i, forKey: key) == nil else {
                throw reader.error(
                    .duplicateName, at: start, "metadata key \(i)",
                    expected: "a key not seen before", found: quoted(key))
            }
            let type = try GGUFValue.readType(&reader, "metadata \(quoted(key)), type")
            let value = try GGUFValue(&reader, name: key, type: type)
            metadata.append(GGUFEntry(key: key, value: value))
        }
        self.metadata = metadata
        self.indexByKey = indexByKey

        alignment = try Self.alignment(indexByKey["general.alignment"].map { metadata[$0].value })

        var records: [TensorRecord] = []
        var seen: Set<String> = []
        for i in 0..<tensorCount {
            let start = reader.offset
            let record = try TensorRecord(&reader, index: i)
            guard seen.insert(record.name).inserted else {
                throw reader.error(
                    .duplicateName, at: start, "tensor \(i), name",
                    expected: "a name not seen before", found: quoted(record.name))
            }
            records.append(record)
        }
        self.records = records
        // Cannot overflow: the offset is at most the file's size and the alignment at most 2^30.
        dataStart = (reader.offset + alignment - 1) / alignment * alignment
        try checkLayout(reader)
    }

    private static func readVersion(_ reader: inout GGUFReader) throws(GGUFError) -> UInt32 {
        guard reader.remaining >= headerByteCount else {
            try checkMagic(reader)
            throw reader.error(
                .truncated, at: 0, "header", expected: "\(headerByteCount) bytes",
                found: "a file of \(reader.remaining)")
        }
        try checkMagic(reader)
        try reader.skip(4, "magic")
        let version = try reader.integer(UInt32.self, "version")
        switch version {
        case 2, 3:
            return version
        case 1:
            throw reader.error(
                .unsupported, at: 4, "version", expected: "2 or 3",
                found: "1 (an early format with 32-bit sizes; convert the model again)")
        default:
            let isBigEndian = (1...3).contains(version.byteSwapped)
            throw reader.error(
                .unsupported, at: 4, "version", expected: "2 or 3",
                found: isBigEndian
                    ? "\(version.byteSwapped) in big-endian byte order" : "\(version)")
        }
    }

    private static func checkMagic(_ reader: GGUFReader) throws(GGUFError) {
        let start = reader.bytes.buffer.prefix(4)
        guard !"GGUF".utf8.starts(with: start) else { return }
        // What people most often have in the place of a model.
        let hint = switch String(decoding: start, as: UTF8.self) {
        case "vers": " (a Git LFS pointer: the file itself was not downloaded)"
        case "tjgg", "fmgg", "lmgg", "algg": " (a format older than GGUF; convert the model again)"
        case "<!DO", "<htm": " (a web page)"
        case "PK\u{3}\u{4}": " (a zip archive, perhaps a PyTorch checkpoint)"
        default: ""
        }
        let printable = start.allSatisfy { (0x20..<0x7f).contains($0) }
        let shown = printable
            ? quoted(String(decoding: start, as: UTF8.self))
            : "bytes " + start.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
                .joined(separator: " ")
        throw reader.error(
            .notGGUF, at: 0, "magic", expected: "'GGUF'", found: shown + hint)
    }

    private static func alignment(_ value: GGUFValue?) throws(GGUFError) -> Int {
        guard let value else { return defaultAlignment }
        let alignment = try value.uint()
        // Kernels load 64-bit words; a page is more than anything needs.
        guard (8...1 << 30).contains(alignment), alignment & (alignment - 1) == 0 else {
            throw value.malformed(
                expected: "a power of two from 8 to 2^30", found: "\(alignment)")
        }
        return alignment
    }

    /// Checks that every tensor is aligned, within the file, and alone where it is.
    private func checkLayout(_ reader: GGUFReader) throws(GGUFError) {
        let available = max(0, bytes.buffer.count - dataStart)
        for record in records {
            let subject = "tensor \(quoted(record.name)), offset"
            guard record.dataOffset % UInt64(alignment) == 0 else {
                throw reader.error(
                    .tensorLayout, at: record.fieldOffset, subject,
                    expected: "a multiple of \(alignment)", found: "\(record.dataOffset)")
            }
            guard record.byteCount <= available,
                record.dataOffset <= UInt64(available - record.byteCount)
            else {
                throw reader.error(
                    .tensorLayout, at: record.fieldOffset, subject,
                    expected: "\(record.byteCount) bytes of data within the file "
                        + "(\(available) bytes from byte \(dataStart); is the download complete?)",
                    found: "\(record.dataOffset)")
            }
        }
        // Offsets of tensors that are in the file fit Int.
        let inOrder = records.sorted { $0.dataOffset < $1.dataOffset }
        for (previous, next) in zip(inOrder, inOrder.dropFirst())
        where next.dataOffset < previous.dataOffset + UInt64(previous.byteCount) {
            throw reader.error(
                .tensorLayout, at: next.fieldOffset, "tensor \(quoted(next.name)), offset",
                expected: "\(previous.dataOffset + UInt64(previous.byteCount)) or more, "
                    + "the end of tensor \(quoted(previous.name))",
                found: "\(next.dataOffset)")
        }
    }

    func value(_ key: String) -> GGUFValue? { indexByKey[key].map { metadata[$0].value } }

    /// The tensors with their data, for the part that is number `index` of its file.
    func tensors(fileIndex index: Int) -> [GGUFTensor] {
        records.map { record in
            let start = dataStart + Int(record.dataOffset)
            return GGUFTensor(
                name: record.name, shape: record.shape, type: record.type,
                byteCount: record.byteCount, pointer: bytes.buffer.baseAddress! + start,
                fileIndex: index, fileOffset: start)
        }
    }
}
