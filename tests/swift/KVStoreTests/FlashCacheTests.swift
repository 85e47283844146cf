import Compute
import Testing
@testable import KVStore
@testable import Model
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Attention memory at the dimensions of DeepSeek-V4 Flash, filled without a model.
enum Flash {
    static let ratios = [0, 0] + (0..<41).map { $0 % 2 == 0 ? 4 : 128 }
    static let window = 128
    static let formats = KVFormats(headDim: 512, ropeDim: 64, indexerDim: 128, roundings: true)
    /// Rows that no two positions share.
    static let noise: [UInt8] = {
        var state: UInt64 = 1
        return (0..<(1 << 16)).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 56)
        }
    }()

    static func empty() throws -> KVCache { try KVCache(ratios: ratios, window: window, formats) }

    /// Takes in tokens up to `end`: appends the rows they leave, and overwrites ring and sums.
    static func advance(_ cache: inout KVCache, to end: Int) throws {
        while cache.position < end {
            let count = min(end - cache.position, 512)
            _ = try cache.prepare(for: count)
            let position = cache.position
            for index in cache.layers.indices {
                let ring = cache.layers[index].ring
                noise.withUnsafeBytes { ring.write($0.baseAddress!, offset: 0, byteCount: min(ring.byteCount, $0.count)) }
                try extend(&cache.layers[index].compressor, position, count)
                try extend(&cache.layers[index].indexer, position, count)
            }
            cache.position += count
        }
    }

    private static func extend(_ state: inout CompressorState?, _ position: Int, _ count: Int) throws {
        guard let ratio = state?.ratio else { return }
        let rows = (position + count) / ratio - position / ratio
        try state!.rows.reserve(rows)
        for row in 0..<rows {
            noise.withUnsafeBytes { state!.rows.append(host: $0.baseAddress! + (position / ratio + row) % 32_000, count: 1) }
        }
        noise.withUnsafeBytes { state!.sums.write($0.baseAddress! + position % 1000, byteCount: state!.sums.byteCount) }
    }

    static func bytes(_ caches: [KVCache]) -> Int {
        var seen: [ObjectIdentifier: Int] = [:]
        for cache in caches { cache.forEachPart { seen[$0] = $1 } }
        return seen.values.reduce(0, +)
    }
}

private struct Source: PayloadSource {
    let cache: KVCache
    var answersEnd: Bool { false }
    var stateByteCount: Int { cache.stateByteCount }
    func writeBlocks(first: Int, count: Int, to out: UnsafeMutableRawPointer, stride: Int) {
        cache.readBlocks(first: first, count: count, into: out, stride: stride)
    }
    func writeState(to out: UnsafeMutableRawBufferPointer) { cache.readState(into: out.baseAddress!) }
}

private struct Sink: PayloadSink {
    var cache: KVCache
    mutating func takeBlocks(first: Int, count: Int, _ bytes: UnsafeRawPointer, stride: Int) throws {
        try cache.appendBlocks(count: count, from: bytes, stride: stride)
    }
    mutating func takeState(_ bytes: UnsafeRawBufferPointer, position: Int) throws {
        #expect(try cache.restoreState(bytes, position: position))
    }
}

func temporaryDirectory() -> String {
    var template = Array("/tmp/pyds4-kv-XXXXXX".utf8CString)
    return String(cString: mkdtemp(&template))
}

func removeDirectory(_ path: String) {
    for name in Files.names(in: path) {
        let inner = path + "/" + name
        if Files.info(inner)?.isDirectory == true { removeDirectory(inner) } else { Files.remove(inner) }
    }
    rmdir(path)
}

@Suite(.serialized) struct FlashCacheTests {
    @Test func anEmptySessionHoldsWindowsAndSumsOnly() throws {
        #expect(Flash.bytes([try Flash.empty()]) < 4_200_000)
    }

    @Test func thirtyTwoThousandTokensAndTheirCheckpointsTakeLessThan150MB() throws {
        var cache = try Flash.empty(), kept: [KVCache] = []
        try Flash.advance(&cache, to: 28_672)
        for turn in 1...5 {
            try Flash.advance(&cache, to: 28_672 + turn * 819)
            kept.append(cache.frozen())
        }
        try Flash.advance(&cache, to: 32_768)
        #expect(Flash.bytes([cache] + kept) <= 150_000_000)
    }

    @Test(arguments: [1, 127, 128, 129, 511, 512, 513, 1024, 4097])
    func forksGoOnApart(at: Int) throws {
        var cache = try Flash.empty()
        try Flash.advance(&cache, to: at)
        let before = bytes(of: cache)
        var forks = [cache.frozen(), cache.frozen()]
        try Flash.advance(&cache, to: at + 700)
        for index in forks.indices { try Flash.advance(&forks[index], to: at + 300 * (index + 1)) }
        #expect(bytes(of: cache.frozen()).rows.starts(with: before.rows.prefix(at / 128 * cache.blockByteCount)))
        var again = try Flash.empty()
        try Flash.advance(&again, to: at)
        try Flash.advance(&again, to: at + 600)
        #expect(bytes(of: forks[1]).rows == bytes(of: again).rows)
    }

    @Test(arguments: [1, 100, 128, 129, 1000, 4096, 5000])
    func aCacheSurvivesTheDisk(position: Int) throws {
        let directory = temporaryDirectory()
        defer { removeDirectory(directory) }
        var cache = try Flash.empty()
        try Flash.advance(&cache, to: position)
        let tokens = (0..<position).map { Int32($0 % 1000) }, chain = KeyChain(identity: .none, tokens: tokens)
        let store = try DiskStore(directory: directory, identity: .none, blockByteCount: cache.blockByteCount, options: StoreOptions())
        guard case .saved = store.save(tokens, chain, isAnchor: false, Source(cache: cache)) else {
            Issue.record("not saved")
            return
        }
        let match = try #require(store.find(tokens, chain, limit: position).match)
        var sink = Sink(cache: try Flash.empty())
        #expect(try store.load(match, into: &sink))
        #expect(bytes(of: sink.cache) == bytes(of: cache))
    }

    /// What failed steps leave must not show.
    @Test(arguments: [1, 5, 127, 128, 500])
    func aSavepointUndoesAStep(tokens: Int) throws {
        var cache = try Flash.empty()
        try Flash.advance(&cache, to: 777)
        let before = try seenBytes(of: cache), kept = cache.frozen()
        var undone = cache
        let saved = try undone.prepare(for: tokens)
        for index in undone.layers.indices {
            let ring = undone.layers[index].ring
            for step in 0..<min(tokens, 128) {
                let zeros = [UInt8](repeating: 0, count: 632)
                ring.write(zeros, offset: (777 + step) % 128 * 632, byteCount: 632)
            }
            try undone.layers[index].compressor?.rows.reserve(9)
            undone.layers[index].compressor?.rows.extend(by: 9)
        }
        undone.restore(saved)
        let isUndone = try seenBytes(of: undone) == before, isUntouched = try seenBytes(of: kept) == before
        #expect(isUndone && isUntouched)
    }

    /// All but the ring's oldest row: the next token takes its place without having seen it.
    private func seenBytes(of cache: KVCache) throws -> Bytes {
        var cache = cache
        for index in cache.layers.indices {
            try cache.layers[index].own()
            let zeros = [UInt8](repeating: 0, count: 632)
            cache.layers[index].ring.write(zeros, offset: cache.position % 128 * 632, byteCount: 632)
        }
        return bytes(of: cache)
    }

    private struct Bytes: Equatable {
        let rows: [UInt8]
        let state: [UInt8]
    }

    private func bytes(of cache: KVCache) -> Bytes {
        let blocks = cache.position / 128, size = cache.blockByteCount
        var rows = [UInt8](repeating: 0, count: blocks * size), state = [UInt8](repeating: 0, count: cache.stateByteCount)
        if blocks > 0 { rows.withUnsafeMutableBytes { cache.readBlocks(first: 0, count: blocks, into: $0.baseAddress!, stride: size) } }
        state.withUnsafeMutableBytes { cache.readState(into: $0.baseAddress!) }
        return Bytes(rows: rows, state: state)
    }
}

private let isLarge = getenv("PYDS4_LARGE_TESTS") != nil

/// Gigabytes of memory and disk; set PYDS4_LARGE_TESTS, and build with `-c release -Xswiftc -enable-testing`.
@Suite(.serialized, .enabled(if: isLarge)) struct LargeFlashTests {
    #if canImport(Glibc)
    private func residentBytes() -> Int {
        var text = [UInt8](repeating: 0, count: 256)
        let file = fopen("/proc/self/statm", "r")!
        defer { fclose(file) }
        let count = fread(&text, 1, text.count, file)
        let pages = String(decoding: text[..<count], as: UTF8.self).split(separator: " ")[1]
        return Int(pages)! * Int(sysconf(Int32(_SC_PAGESIZE)))
    }

    @Test func aMillionTokensTakeLessThanFourGigabytes() throws {
        let before = residentBytes()
        var cache = try Flash.empty()
        try Flash.advance(&cache, to: 1_000_000)
        let resident = residentBytes() - before
        print("1,000,000 tokens: \(Flash.bytes([cache])) bytes of buffers, \(resident) resident")
        #expect(resident <= 4_000_000_000)
    }
    #endif

    @Test func aConversationOfFiftyTurnsIsWrittenOnce() throws {
        let directory = temporaryDirectory()
        defer { removeDirectory(directory) }
        let tokens = (0..<50_000).map { Int32($0 % 129_280) }
        var cache = try Flash.empty()
        var options = StoreOptions()
        options.reserveBytes = 0
        let store = try DiskStore(directory: directory, identity: .none, blockByteCount: cache.blockByteCount, options: options)
        for turn in 1...50 {
            try Flash.advance(&cache, to: turn * 1000)
            let prefix = Array(tokens[..<(turn * 1000)])
            let result = store.save(prefix, KeyChain(identity: .none, tokens: prefix), isAnchor: false, Source(cache: cache.frozen()))
            guard case .saved = result else {
                Issue.record("turn \(turn): \(result)")
                return
            }
        }
        let end = store.entries()[0].chainByteCount, s = store.statistics()
        print("50 turns of 1000 tokens: end \(end), left \(s.byteCount), written \(s.counters.bytesWritten), states \(s.stateCount)")
        #expect(Double(s.byteCount) <= 1.5 * Double(end))
        #expect(Double(s.counters.bytesWritten) <= 2.5 * Double(end))
    }
}
