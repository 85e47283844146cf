/// The type of a metadata value; ids as in the file.
public enum GGUFValueType: UInt32, CaseIterable, Sendable {
    case uint8 = 0
    case int8 = 1
    case uint16 = 2
    case int16 = 3
    case uint32 = 4
    case int32 = 5
    case float32 = 6
    case bool = 7
    case string = 8
    case array = 9
    case uint64 = 10
    case int64 = 11
    case float64 = 12

    /// Size of one value; nil for strings and arrays, whose size is in the file.
    public var byteCount: Int? {
        switch self {
        case .uint8, .int8, .bool: 1
        case .uint16, .int16: 2
        case .uint32, .int32, .float32: 4
        case .uint64, .int64, .float64: 8
        case .string, .array: nil
        }
    }

    var isInteger: Bool {
        switch self {
        case .uint8, .int8, .uint16, .int16, .uint32, .int32, .uint64, .int64: true
        case .float32, .float64, .bool, .string, .array: false
        }
    }
}

/// One metadata value, still in the file.
///
/// Opening a file checks that every value lies within it; nothing is copied until an accessor asks.
/// Accessors throw `wrongType` when the value is something else. A value keeps its file mapped.
public struct GGUFValue: Sendable {
    /// The key, with `[i]` appended for each level of nested array; for messages.
    public let name: String
    public let type: GGUFValueType
    /// What an array holds; nil for anything else.
    public let elementType: GGUFValueType?
    /// Elements of an array; 1 for anything else.
    public let count: Int
    /// Byte offset in the file of what `withBytes` gives.
    public let offset: Int
    private let byteCount: Int
    private let file: GGUFBytes

    /// Deepest allowed array of arrays. No known writer nests at all; without a limit a small file
    /// could exhaust the stack.
    static let maximumDepth = 8

    /// Reads a value of type `type` at the cursor and checks that all of it is in the file.
    init(
        _ reader: inout GGUFReader, name: String, type: GGUFValueType
    ) throws(GGUFError) {
        var elementType: GGUFValueType?
        var count = 1
        var range: Range<Int>
        switch type {
        case .string:
            range = try reader.lengthAndBytes("string \(quoted(name))")
        case .array:
            let header = try Self.readArrayHeader(&reader, name, depth: 0)
            elementType = header.elementType
            count = header.count
            let start = reader.offset
            try Self.skipElements(&reader, name, header.elementType, header.count, depth: 0)
            range = start..<reader.offset
        default:
            let start = reader.offset
            try reader.skip(type.byteCount!, "\(type) \(quoted(name))")
            range = start..<reader.offset
        }
        self.name = name
        self.type = type
        self.elementType = elementType
        self.count = count
        offset = range.lowerBound
        byteCount = range.count
        file = reader.bytes
        if type == .bool {
            _ = try bool()
        }
    }

    static func readType(
        _ reader: inout GGUFReader, _ subject: @autoclosure () -> String
    ) throws(GGUFError) -> GGUFValueType {
        let start = reader.offset
        let id = try reader.integer(UInt32.self, subject())
        guard let type = GGUFValueType(rawValue: id) else {
            throw reader.error(
                .malformed, at: start, subject(), expected: "a value type from 0 to 12",
                found: "\(id)")
        }
        return type
    }

    private static func readArrayHeader(
        _ reader: inout GGUFReader, _ name: String, depth: Int
    ) throws(GGUFError) -> (elementType: GGUFValueType, count: Int) {
        let start = reader.offset
        guard depth < maximumDepth else {
            throw reader.error(
                .malformed, at: start, "array \(quoted(name))",
                expected: "at most \(maximumDepth) arrays inside each other", found: "more")
        }
        let element = try readType(&reader, "array \(quoted(name)), element type")
        let count = try reader.count(
            minimumSize: element.byteCount ?? (element == .string ? 8 : 12),
            "array \(quoted(name)), count")
        return (element, count)
    }

    private static func skipElements(
        _ reader: inout GGUFReader, _ name: String, _ type: GGUFValueType, _ count: Int, depth: Int
    ) throws(GGUFError) {
        if let size = type.byteCount {
            // Cannot overflow: count(minimumSize:) has compared it with the bytes that follow.
            try reader.skip(count * size, "array \(quoted(name))")
            return
        }
        for i in 0..<count {
            if type == .string {
                _ = try reader.lengthAndBytes("string \(quoted(name))[\(i)]")
            } else {
                let inner = try readArrayHeader(&reader, name, depth: depth + 1)
                try skipElements(&reader, name, inner.elementType, inner.count, depth: depth + 1)
            }
        }
    }

    /// Calls `body` with the value as stored, little-endian: a number's bytes, a string's bytes
    /// without its length, an array's elements without their type and count. Elements that are
    /// strings (or arrays) have their length (or type and count) before each. The pointer is valid
    /// during the call only: a value that is not used afterwards may take the mapping with it.
    public func withBytes<Result>(_ body: (UnsafeRawBufferPointer) throws -> Result) rethrows -> Result {
        try withBytes(of: offset..<offset + byteCount, body)
    }

    private func withBytes<Result>(
        of range: Range<Int>, _ body: (UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        try withExtendedLifetime(file) {
            try body(UnsafeRawBufferPointer(rebasing: file.buffer[range]))
        }
    }

    /// `uint32`, `array of string`.
    public var typeName: String { elementType.map { "array of \($0)" } ?? "\(type)" }

    // MARK: One value

    /// A non-negative integer, whatever width and signedness it is stored with.
    public func uint() throws(GGUFError) -> Int {
        guard type.isInteger else { throw wrong("an unsigned integer") }
        return try uint(at: 0, as: type)
    }

    /// An integer, whatever width and signedness it is stored with.
    public func int() throws(GGUFError) -> Int {
        guard type.isInteger else { throw wrong("an integer") }
        return try int(at: 0, as: type)
    }

    public func float() throws(GGUFError) -> Double {
        guard type == .float32 || type == .float64 else { throw wrong("a floating-point number") }
        return float(at: 0, as: type)
    }

    public func bool() throws(GGUFError) -> Bool {
        guard type == .bool else { throw wrong("a bool") }
        return try bool(at: 0)
    }

    /// The text; throws when it is not UTF-8 (`withBytes` gives it as it is).
    public func string() throws(GGUFError) -> String {
        guard type == .string else { throw wrong("a string") }
        return try text(offset..<offset + byteCount, quoted(name))
    }

    // MARK: Arrays

    public func uintArray() throws(GGUFError) -> [Int] {
        guard let element = elementType, element.isInteger else {
            throw wrong("an array of unsigned integers")
        }
        var result: [Int] = []
        result.reserveCapacity(count)
        for i in 0..<count { result.append(try uint(at: i, as: element)) }
        return result
    }

    public func intArray() throws(GGUFError) -> [Int] {
        guard let element = elementType, element.isInteger else {
            throw wrong("an array of integers")
        }
        var result: [Int] = []
        result.reserveCapacity(count)
        for i in 0..<count { result.append(try int(at: i, as: element)) }
        return result
    }

    public func floatArray() throws(GGUFError) -> [Double] {
        guard let element = elementType, element == .float32 || element == .float64 else {
            throw wrong("an array of floating-point numbers")
        }
        return (0..<count).map { float(at: $0, as: element) }
    }

    public func boolArray() throws(GGUFError) -> [Bool] {
        guard elementType == .bool else { throw wrong("an array of bools") }
        var result: [Bool] = []
        result.reserveCapacity(count)
        for i in 0..<count { result.append(try bool(at: i)) }
        return result
    }

    /// The texts; throws when one is not UTF-8 (`forEachString` gives them as they are).
    public func stringArray() throws(GGUFError) -> [String] {
        guard elementType == .string else { throw wrong("an array of strings") }
        var result: [String] = []
        result.reserveCapacity(count)
        var reader = elementReader()
        for i in 0..<count {
            let range = try reader.lengthAndBytes("string \(quoted(name))[\(i)]")
            result.append(try text(range, "\(quoted(name))[\(i)]"))
        }
        return result
    }

    /// Calls `body` with the bytes of each string of an array of strings, in order, without copying.
    public func forEachString(_ body: (UnsafeRawBufferPointer) -> Void) throws(GGUFError) {
        guard elementType == .string else { throw wrong("an array of strings") }
        var reader = elementReader()
        for i in 0..<count {
            let range = try reader.lengthAndBytes("string \(quoted(name))[\(i)]")
            withBytes(of: range, body)
        }
    }

    /// The inner arrays of an array of arrays.
    public func arrays() throws(GGUFError) -> [GGUFValue] {
        guard elementType == .array else { throw wrong("an array of arrays") }
        var result: [GGUFValue] = []
        result.reserveCapacity(count)
        var reader = elementReader()
        for i in 0..<count {
            result.append(try GGUFValue(&reader, name: "\(name)[\(i)]", type: .array))
        }
        return result
    }

    // MARK: Elements

    private func elementReader() -> GGUFReader {
        GGUFReader(file, range: offset..<offset + byteCount)
    }

    private func load<T: FixedWidthInteger>(_ index: Int, _: T.Type) -> T {
        let size = MemoryLayout<T>.size
        return withBytes(of: offset + index * size..<offset + (index + 1) * size) {
            T(littleEndian: $0.loadUnaligned(as: T.self))
        }
    }

    private func int(at index: Int, as type: GGUFValueType) throws(GGUFError) -> Int {
        switch type {
        case .uint8: return Int(load(index, UInt8.self))
        case .int8: return Int(load(index, Int8.self))
        case .uint16: return Int(load(index, UInt16.self))
        case .int16: return Int(load(index, Int16.self))
        case .uint32: return Int(load(index, UInt32.self))
        case .int32: return Int(load(index, Int32.self))
        case .int64: return Int(load(index, Int64.self))
        case .uint64:
            let value = load(index, UInt64.self)
            guard let result = Int(exactly: value) else {
                throw wrong("an integer below 2^63", found: "\(value)", at: offset + index * 8)
            }
            return result
        case .float32, .float64, .bool, .string, .array:
            preconditionFailure("not an integer type: \(type)")
        }
    }

    private func uint(at index: Int, as type: GGUFValueType) throws(GGUFError) -> Int {
        let value = try int(at: index, as: type)
        guard value >= 0 else {
            throw wrong(
                "an integer of 0 or more", found: "\(value)",
                at: offset + index * (type.byteCount ?? 0))
        }
        return value
    }

    private func float(at index: Int, as type: GGUFValueType) -> Double {
        type == .float32
            ? Double(Float(bitPattern: load(index, UInt32.self)))
            : Double(bitPattern: load(index, UInt64.self))
    }

    private func bool(at index: Int) throws(GGUFError) -> Bool {
        let value = load(index, UInt8.self)
        guard value < 2 else {
            throw GGUFError(
                kind: .malformed, file: file.path, offset: offset + index,
                subject: "bool \(quoted(name))", expected: "0 or 1", found: "\(value)")
        }
        return value == 1
    }

    private func text(_ range: Range<Int>, _ subject: String) throws(GGUFError) -> String {
        if let result = withBytes(of: range, { String(validating: $0, as: UTF8.self) }) {
            return result
        }
        let start = withBytes(of: range) { String(decoding: $0.prefix(400), as: UTF8.self) }
        throw GGUFError(
            kind: .malformed, file: file.path, offset: range.lowerBound,
            subject: "string \(subject)", expected: "UTF-8 text", found: quoted(start))
    }

    func malformed(expected: String, found: String) -> GGUFError {
        GGUFError(
            kind: .malformed, file: file.path, offset: offset,
            subject: "metadata \(quoted(name))", expected: expected, found: found)
    }

    private func wrong(_ expected: String, found: String? = nil, at place: Int? = nil) -> GGUFError {
        GGUFError(
            kind: .wrongType, file: file.path, offset: place ?? offset,
            subject: "metadata \(quoted(name))", expected: expected, found: found ?? typeName)
    }
}

/// One line of the metadata.
public struct GGUFEntry: Sendable {
    public let key: String
    public let value: GGUFValue
}
