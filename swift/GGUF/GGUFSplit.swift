/// How a model is divided into files: the names and keys written by llama.cpp's gguf-split.
///
/// Part i (from 0) of n is `PREFIX-0000{i+1}-of-0000{n}.gguf` and carries `split.no` = i and
/// `split.count` = n; the first also has the model's metadata and, as `split.tensors.count`, the
/// number of tensors in all parts together.
enum GGUFSplit {
    static let numberKey = "split.no"
    static let countKey = "split.count"
    static let tensorCountKey = "split.tensors.count"

    /// Opens the parts after `first`; none when the file is whole.
    static func remainingParts(
        after first: GGUFPart, path: String, open: (String) throws(GGUFError) -> GGUFBytes
    ) throws(GGUFError) -> [GGUFPart] {
        let count = try first.value(countKey)?.uint() ?? 1
        guard count > 1 else { return [] }
        let countValue = first.value(countKey)!
        guard count <= 99999 else {
            throw countValue.malformed(expected: "at most 99999 parts", found: "\(count)")
        }
        let number = try first.value(numberKey)?.uint() ?? 0
        let name = PartName(path)
        guard number == 0 else {
            throw GGUFError(
                kind: .splitPart, file: path, offset: first.value(numberKey)?.offset,
                subject: numberKey, expected: "the first of \(count) parts"
                    + (name.map { ", \(quoted($0.path(0, of: count)))" } ?? ""),
                found: "part \(number + 1)")
        }
        guard let name, name.index == 0, name.count == count else {
            throw GGUFError(
                kind: .splitPart, file: path, offset: countValue.offset, subject: "file name",
                expected: "the ending \(quoted(PartName.ending(0, of: count))), "
                    + "to find the other parts by",
                found: quoted(lastComponent(path)))
        }
        var parts: [GGUFPart] = []
        for i in 1..<count {
            parts.append(try part(i, of: count, name: name, open: open))
        }
        try checkTensorCount(first, parts)
        return parts
    }

    private static func part(
        _ index: Int, of count: Int, name: PartName, open: (String) throws(GGUFError) -> GGUFBytes
    ) throws(GGUFError) -> GGUFPart {
        let path = name.path(index, of: count)
        let bytes: GGUFBytes
        do {
            bytes = try open(path)
        } catch {
            guard error.kind == .notFound else { throw error }
            throw GGUFError(
                kind: .splitPart, file: path, offset: nil,
                subject: "part \(index + 1) of \(count)", expected: "a file",
                found: error.found)
        }
        let part = try GGUFPart(bytes)
        for (key, expected) in [(numberKey, index), (countKey, count)] {
            guard let value = part.value(key) else {
                throw GGUFError(
                    kind: .splitPart, file: path, offset: nil,
                    subject: "part \(index + 1) of \(count)",
                    expected: "the key \(quoted(key))", found: "none")
            }
            let found = try value.uint()
            guard found == expected else {
                throw GGUFError(
                    kind: .splitPart, file: path, offset: value.offset, subject: key,
                    expected: "\(expected)", found: "\(found)")
            }
        }
        return part
    }

    private static func checkTensorCount(
        _ first: GGUFPart, _ others: [GGUFPart]
    ) throws(GGUFError) {
        guard let value = first.value(tensorCountKey) else { return }
        let expected = try value.uint()
        let found = others.reduce(first.records.count) { $0 + $1.records.count }
        guard expected == found else {
            throw GGUFError(
                kind: .splitPart, file: first.bytes.path, offset: value.offset,
                subject: tensorCountKey, expected: "\(expected) tensors in \(others.count + 1) parts",
                found: "\(found)")
        }
    }

    private static func lastComponent(_ path: String) -> String {
        String(path.split(separator: "/").last ?? "")
    }
}

/// A path of the form `PREFIX-00002-of-00005.gguf`.
struct PartName {
    let prefix: String
    /// From 0.
    let index: Int
    let count: Int

    /// Nil when `path` has another form.
    init?(_ path: String) {
        let bytes = Array(path.utf8)
        let start = bytes.count - "-00001-of-00005.gguf".utf8.count
        guard start >= 0, bytes[start...].starts(with: "-".utf8),
            bytes[(start + 6)...].starts(with: "-of-".utf8),
            bytes[(start + 15)...].elementsEqual(".gguf".utf8),
            let number = Self.number(bytes[(start + 1)..<(start + 6)]), number >= 1,
            let count = Self.number(bytes[(start + 10)..<(start + 15)])
        else { return nil }
        prefix = String(decoding: bytes[..<start], as: UTF8.self)
        index = number - 1
        self.count = count
    }

    func path(_ index: Int, of count: Int) -> String { prefix + Self.ending(index, of: count) }

    static func ending(_ index: Int, of count: Int) -> String {
        "-\(fiveDigits(index + 1))-of-\(fiveDigits(count)).gguf"
    }

    private static func fiveDigits(_ value: Int) -> String {
        let digits = String(value)
        return String(repeating: "0", count: max(0, 5 - digits.count)) + digits
    }

    private static func number(_ digits: ArraySlice<UInt8>) -> Int? {
        guard digits.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        return Int(String(decoding: digits, as: UTF8.self))
    }
}
