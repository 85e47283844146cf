#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Compiled kernels kept between runs, a file each: a mark, a checksum, the code. What is not whole is not there.
struct KernelCache {
    let directory: String
    private static let mark: [UInt8] = Array("pyds4gpu".utf8)

    /// Where the system keeps what can be made again; nil when it names no such place.
    static var standard: KernelCache? {
        let base = getenv("XDG_CACHE_HOME").map { String(cString: $0) }
            ?? getenv("HOME").map { String(cString: $0) + "/.cache" }
        guard let base, !base.isEmpty else { return nil }
        return KernelCache(directory: base + "/pyds4")
    }

    func holdsAny(prefix: String) -> Bool {
        guard let folder = opendir(directory) else { return false }
        defer { closedir(folder) }
        while let entry = readdir(folder) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: $0.pointee)) { String(cString: $0) }
            }
            if name.hasPrefix(prefix) { return true }
        }
        return false
    }

    func read(_ name: String) -> [UInt8]? {
        guard let file = fopen("\(directory)/\(name)", "rb") else { return nil }
        defer { fclose(file) }
        fseek(file, 0, SEEK_END)
        let size = ftell(file)
        rewind(file)
        guard size > 16 else { return nil }
        var bytes = [UInt8](repeating: 0, count: size)
        guard fread(&bytes, 1, size, file) == size, bytes.starts(with: Self.mark) else { return nil }
        let code = Array(bytes[16...])
        return Array(bytes[8..<16]) == Self.checksum(code) ? code : nil
    }

    /// Whole or not at all: another process may read or write the same file. A full disk only costs time.
    func write(_ code: [UInt8], _ name: String) {
        mkdir(String(directory[..<(directory.lastIndex(of: "/") ?? directory.startIndex)]), 0o755)
        mkdir(directory, 0o755)
        let path = "\(directory)/\(name)", fresh = "\(path).\(getpid())"
        guard let file = fopen(fresh, "wb") else { return }
        let bytes = Self.mark + Self.checksum(code) + code
        let written = fwrite(bytes, 1, bytes.count, file)
        if fclose(file) == 0, written == bytes.count, rename(fresh, path) == 0 { return }
        unlink(fresh)
    }

    private static func checksum(_ bytes: [UInt8]) -> [UInt8] {
        var hash = FNV()
        bytes.withUnsafeBytes { hash.add($0) }
        return withUnsafeBytes(of: hash.value.littleEndian) { Array($0) }
    }
}

/// The hash of Fowler, Noll and Vo, 64 bits: names things, protects nothing.
struct FNV {
    private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    mutating func add(_ bytes: UnsafeRawBufferPointer) {
        for byte in bytes { value = (value ^ UInt64(byte)) &* 0x100_0000_01b3 }
    }
}
