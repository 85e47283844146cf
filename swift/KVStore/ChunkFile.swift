/// The two kinds of file in the store. All integers are little-endian.
///
///     rows file  <key of its last block>.rows        state file  <its key>.state
///       header    112 bytes, see below                 header    112 bytes
///       tokens    blocks × 128 × i32                   tokens    (position mod 128) × i32
///       checksum  u64 of all before it                 checksum  u64 of all before it
///       block 0   payload, u64 checksum                state     payload, u64 checksum
///       block 1   …
///
///     header  0  magic    "pyds4kv\n"
///             8  version  u32, 1
///            12  kind     u32, 1 rows, 2 state
///            16  identity 20 bytes: model, formats, layout
///            36  key      20 bytes: of the last block, of the state
///            56  parent   20 bytes: the key before the first token here
///            76  flags    u32, 1: anchor, 2: the state can answer for its very end
///            80  start    u64, tokens before the first one here
///            88  tokens   u64
///            96  payload  u64, bytes of one block's, or of the state's
///           104  made     u64, seconds since 1970
///
/// A block is the compressed and indexer rows of 128 tokens; a state is what else is needed to go on
/// behind a token: window, running sums, and the rows behind the last full block. Rows are thus kept
/// once, however many states stand on them. Checksums of payloads are seeded with their key.
struct ChunkHeader: Equatable {
    enum Kind: UInt32 { case rows = 1, state = 2 }
    static let magic = Array("pyds4kv\n".utf8)
    static let version: UInt32 = 1
    static let byteCount = 112
    static let anchorFlag: UInt32 = 1, endFlag: UInt32 = 2
    static let checksumByteCount = 8
    /// More would be a damaged header.
    static let mostTokens = 1 << 24

    var kind: Kind
    var identity: ChunkKey
    var key: ChunkKey
    var parent: ChunkKey
    var flags: UInt32 = 0
    var start: Int
    var tokenCount: Int
    var payloadByteCount: Int
    var madeSeconds: UInt64 = 0

    var blockCount: Int { kind == .rows ? tokenCount / KeyChain.blockTokens : 1 }
    /// Header, tokens and their checksum.
    var headByteCount: Int { Self.byteCount + 4 * tokenCount + Self.checksumByteCount }
    /// A payload and its checksum.
    var stride: Int { payloadByteCount + Self.checksumByteCount }
    var fileByteCount: Int { headByteCount + blockCount * stride }

    /// Header, tokens and checksum as they stand in the file.
    func head(_ tokens: ArraySlice<Int32>) -> [UInt8] {
        precondition(tokens.count == tokenCount)
        var out = Self.magic
        func append(_ value: some FixedWidthInteger) { withUnsafeBytes(of: value.littleEndian) { out += $0 } }
        append(Self.version)
        append(kind.rawValue)
        out += identity.bytes + key.bytes + parent.bytes
        append(flags)
        append(UInt64(start))
        append(UInt64(tokenCount))
        append(UInt64(payloadByteCount))
        append(madeSeconds)
        for token in tokens { append(token) }
        append(out.withUnsafeBytes { xxh64($0) })
        return out
    }

    /// Reads the fixed part; nil when it cannot be one. What it says still has to be checked.
    init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= Self.byteCount, bytes.prefix(8).elementsEqual(Self.magic),
              Self.integer(bytes, 8, UInt32.self) == Self.version,
              let kind = Kind(rawValue: Self.integer(bytes, 12, UInt32.self)) else { return nil }
        self.kind = kind
        identity = ChunkKey(bytes: bytes.baseAddress! + 16)
        key = ChunkKey(bytes: bytes.baseAddress! + 36)
        parent = ChunkKey(bytes: bytes.baseAddress! + 56)
        flags = Self.integer(bytes, 76, UInt32.self)
        guard let start = Int(exactly: Self.integer(bytes, 80, UInt64.self)),
              let tokenCount = Int(exactly: Self.integer(bytes, 88, UInt64.self)), tokenCount <= Self.mostTokens,
              let payload = Int(exactly: Self.integer(bytes, 96, UInt64.self)), payload < 1 << 40,
              start <= 1 << 40, start % KeyChain.blockTokens == 0 else { return nil }
        switch kind {
        case .rows: guard tokenCount > 0, tokenCount % KeyChain.blockTokens == 0 else { return nil }
        case .state: guard tokenCount < KeyChain.blockTokens else { return nil }
        }
        (self.start, self.tokenCount, payloadByteCount) = (start, tokenCount, payload)
        madeSeconds = Self.integer(bytes, 104, UInt64.self)
    }

    init(kind: Kind, identity: ChunkKey, key: ChunkKey, parent: ChunkKey, start: Int, tokenCount: Int,
         payloadByteCount: Int) {
        (self.kind, self.identity, self.key, self.parent) = (kind, identity, key, parent)
        (self.start, self.tokenCount, self.payloadByteCount) = (start, tokenCount, payloadByteCount)
    }

    private static func integer<T: FixedWidthInteger>(_ bytes: UnsafeRawBufferPointer, _ offset: Int, _ type: T.Type) -> T {
        T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

/// A file of the store whose header, tokens and length were found right.
struct ChunkHead {
    let header: ChunkHeader
    let tokens: [Int32]
    /// Of every block; of a state only its own.
    let keys: [ChunkKey]

    /// Reads and checks everything before the payloads.
    ///
    /// - Returns: nil when the file is damaged, cut or not what its name says.
    /// - Throws: `StoreError` when it cannot be read, which says nothing about what is in it.
    init?(_ file: OpenFile, identity: ChunkKey, named key: ChunkKey, kind: ChunkHeader.Kind) throws {
        var bytes = [UInt8](repeating: 0, count: ChunkHeader.byteCount)
        guard try bytes.withUnsafeMutableBytes({ try file.read(into: $0, at: 0) }),
              let header = bytes.withUnsafeBytes({ ChunkHeader($0) }),
              header.kind == kind, header.identity == identity, header.key == key,
              try file.byteCount() == header.fileByteCount else { return nil }
        bytes = [UInt8](repeating: 0, count: header.headByteCount)
        guard try bytes.withUnsafeMutableBytes({ try file.read(into: $0, at: 0) }) else { return nil }
        let sound = bytes.withUnsafeBytes { all in
            xxh64(UnsafeRawBufferPointer(rebasing: all.dropLast(ChunkHeader.checksumByteCount)))
                == UInt64(littleEndian: all.loadUnaligned(fromByteOffset: all.count - 8, as: UInt64.self))
        }
        guard sound else { return nil }
        self.header = header
        tokens = bytes.withUnsafeBytes { all in
            (0..<header.tokenCount).map {
                Int32(littleEndian: all.loadUnaligned(fromByteOffset: ChunkHeader.byteCount + 4 * $0, as: Int32.self))
            }
        }
        switch kind {
        case .rows:
            var keys: [ChunkKey] = []
            for block in 0..<header.blockCount {
                let range = block * KeyChain.blockTokens..<(block + 1) * KeyChain.blockTokens
                keys.append(KeyChain.key(after: keys.last ?? header.parent, tokens[range]))
            }
            self.keys = keys
        case .state:
            keys = [KeyChain.stateKey(after: header.parent, tokens[...])]
        }
        guard keys.last == key else { return nil }
    }
}
