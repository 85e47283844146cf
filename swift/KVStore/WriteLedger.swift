#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// How much was written to a directory in the last 24 hours, by all processes together.
///
/// One small file, `ledger`: start of the window and bytes since, u64 each, and their checksum.
extension DiskStore {
    private static let windowSeconds: UInt64 = 86_400

    private struct Ledger {
        var start: UInt64
        var bytes: UInt64
    }

    private var ledgerPath: String { directory + "/ledger" }

    /// Bytes that may still be written; nil: any number.
    func writeBudgetLeft() -> Int? {
        guard options.writeBudgetBytes > 0 else { return nil }
        return max(0, options.writeBudgetBytes - Int(clamping: readLedger(nil).bytes))
    }

    /// Adds what was written.
    func account(_ byteCount: Int) {
        guard options.writeBudgetBytes > 0, byteCount > 0, let file = try? OpenFile(updating: ledgerPath) else { return }
        file.lock()
        var ledger = readLedger(file)
        ledger.bytes = ledger.bytes &+ UInt64(byteCount)
        var bytes: [UInt8] = []
        withUnsafeBytes(of: ledger.start.littleEndian) { bytes += $0 }
        withUnsafeBytes(of: ledger.bytes.littleEndian) { bytes += $0 }
        let checksum = bytes.withUnsafeBytes { xxh64($0) }
        withUnsafeBytes(of: checksum.littleEndian) { bytes += $0 }
        try? bytes.withUnsafeBytes { try file.overwrite($0) }
    }

    /// A missing or damaged ledger begins a new window; so does a clock set back, with the bytes kept.
    private func readLedger(_ file: OpenFile?) -> Ledger {
        let now = UInt64(max(0, Files.nowNanoseconds() / 1_000_000_000))
        var words: [UInt64] = [0, 0, 0]
        let isWhole = try? words.withUnsafeMutableBytes { bytes in
            try (file ?? OpenFile(reading: ledgerPath)).read(into: bytes, at: 0)
        }
        guard isWhole == true, words.withUnsafeBytes({ xxh64(UnsafeRawBufferPointer(rebasing: $0.prefix(16))) }) == UInt64(littleEndian: words[2])
        else { return Ledger(start: now, bytes: 0) }
        let start = UInt64(littleEndian: words[0]), bytes = UInt64(littleEndian: words[1])
        if now < start { return Ledger(start: now, bytes: bytes) }
        return now - start >= Self.windowSeconds ? Ledger(start: now, bytes: 0) : Ledger(start: start, bytes: bytes)
    }
}

func processID() -> Int32 { getpid() }
