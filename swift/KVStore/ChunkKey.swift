/// The name of a chunk: a SHA-1 digest.
public struct ChunkKey: Hashable, Sendable, CustomStringConvertible {
    public static let byteCount = 20
    private let words: (UInt32, UInt32, UInt32, UInt32, UInt32)

    init(_ words: (UInt32, UInt32, UInt32, UInt32, UInt32)) { self.words = words }

    /// Names nothing.
    public static let none = ChunkKey((0, 0, 0, 0, 0))

    /// From the digest's 20 bytes.
    public init(bytes: UnsafeRawPointer) {
        func word(_ i: Int) -> UInt32 { UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)) }
        words = (word(0), word(1), word(2), word(3), word(4))
    }

    /// From 40 hexadecimal digits, in lower case as file names have them.
    public init?(hex: some StringProtocol) {
        let digits = hex.utf8.compactMap { digit -> UInt32? in
            switch digit {
            case 0x30...0x39: UInt32(digit) - 0x30
            case 0x61...0x66: UInt32(digit) - 0x61 + 10
            default: nil
            }
        }
        guard digits.count == 40, hex.utf8.count == 40 else { return nil }
        func word(_ i: Int) -> UInt32 { digits[8 * i..<8 * i + 8].reduce(0) { $0 << 4 | $1 } }
        words = (word(0), word(1), word(2), word(3), word(4))
    }

    public var bytes: [UInt8] {
        [words.0, words.1, words.2, words.3, words.4].flatMap { withUnsafeBytes(of: $0.bigEndian, Array.init) }
    }

    public var description: String {
        let digits = Array("0123456789abcdef".utf8)
        return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }

    public static func == (a: ChunkKey, b: ChunkKey) -> Bool { a.words == b.words }
    public func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
        hasher.combine(words.1)
    }

    /// The first eight bytes: seeds the checksum of what the chunk holds, so that a checksum also
    /// says whose bytes these are.
    var seed: UInt64 { UInt64(words.0) << 32 | UInt64(words.1) }
}

/// The keys of a timeline: one for every full block of 128 tokens, each a hash of the key before it
/// and the block's ids. Equal keys mean equal tokens from the very start, on the same model.
public struct KeyChain: Sendable {
    /// Tokens in a block. At its multiples no compressor holds a half-filled window.
    public static let blockTokens = 128

    public let identity: ChunkKey
    /// `keys[i]` follows block i.
    public private(set) var keys: [ChunkKey] = []

    /// - Parameter identity: Of the model, its formats and its layout.
    public init(identity: ChunkKey) { self.identity = identity }

    public init(identity: ChunkKey, tokens: [Int32]) {
        self.init(identity: identity)
        extend(to: tokens)
    }

    /// The key after `blocks` blocks; the identity before the first.
    public subscript(blocks: Int) -> ChunkKey { blocks == 0 ? identity : keys[blocks - 1] }

    /// Takes in the full blocks of `tokens`, which begin with those already taken in.
    public mutating func extend(to tokens: [Int32]) {
        for block in keys.count..<max(keys.count, tokens.count / Self.blockTokens) {
            keys.append(Self.key(after: self[block], tokens[block * Self.blockTokens..<(block + 1) * Self.blockTokens]))
        }
    }

    public mutating func truncate(toTokens count: Int) {
        keys.removeLast(max(0, keys.count - count / Self.blockTokens))
    }

    static func key(after parent: ChunkKey, _ block: ArraySlice<Int32>) -> ChunkKey {
        var hash = SHA1()
        hash.update(parent.bytes)
        hash.update(block)
        return hash.finish()
    }

    /// The key of the state `tail` tokens behind a block's end.
    static func stateKey(after parent: ChunkKey, _ tail: ArraySlice<Int32>) -> ChunkKey {
        var hash = SHA1()
        hash.update(Array("state".utf8) + parent.bytes)
        hash.update(tail)
        return hash.finish()
    }
}
