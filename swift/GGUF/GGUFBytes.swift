#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The bytes of one file, for as long as somebody holds this object.
///
/// Usually a read-only mapping: pages arrive when they are touched, so that opening an 80 GB file
/// costs the header only, and they are shared with every process that maps the same file.
final class GGUFBytes: @unchecked Sendable {  // immutable after init
    let path: String
    let buffer: UnsafeRawBufferPointer
    private let isMapped: Bool

    /// Maps the file at `path`.
    ///
    /// The size is read once, here: a file cut short while it is mapped kills whoever touches the
    /// lost pages, and no reader can prevent that.
    init(mapping path: String) throws(GGUFError) {
        self.path = path
        // Without O_NONBLOCK, opening a pipe waits for a writer that may never come.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            let code = errno
            throw GGUFError(
                kind: code == ENOENT || code == ENOTDIR ? .notFound : .unreadable, file: path,
                offset: nil, subject: "file", expected: "a readable GGUF file",
                found: String(cString: strerror(code)))
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw GGUFError(
                kind: .unreadable, file: path, offset: nil, subject: "file",
                expected: "a readable GGUF file", found: String(cString: strerror(errno)))
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw GGUFError(
                kind: .notARegularFile, file: path, offset: nil, subject: "file",
                expected: "a regular file", found: Self.kindOfFile(status.st_mode))
        }
        let size = Int(status.st_size)
        guard size > 0 else {
            throw GGUFError(
                kind: .truncated, file: path, offset: 0, subject: "file",
                expected: "a GGUF header of at least 24 bytes", found: "an empty file")
        }
        let address = mmap(nil, size, PROT_READ, MAP_SHARED, descriptor, 0)
        guard let address, address != MAP_FAILED else {
            throw GGUFError(
                kind: .unreadable, file: path, offset: nil, subject: "mapping \(size) bytes",
                expected: "enough address space", found: String(cString: strerror(errno)))
        }
        buffer = UnsafeRawBufferPointer(start: address, count: size)
        isMapped = true
    }

    /// Holds a copy of `bytes` under the name `path`; for tests and fuzzing.
    init(copying bytes: [UInt8], path: String) {
        self.path = path
        // Aligned like the start of a mapping is, as far as any tensor format can tell.
        let copy = UnsafeMutableRawBufferPointer.allocate(
            byteCount: bytes.count, alignment: 64)
        copy.copyBytes(from: bytes)
        buffer = UnsafeRawBufferPointer(copy)
        isMapped = false
    }

    deinit {
        if isMapped {
            munmap(UnsafeMutableRawPointer(mutating: buffer.baseAddress!), buffer.count)
        } else {
            buffer.deallocate()
        }
    }

    private static func kindOfFile(_ mode: mode_t) -> String {
        switch mode & S_IFMT {
        case S_IFDIR: "a directory"
        case S_IFIFO: "a pipe"
        case S_IFSOCK: "a socket"
        case S_IFCHR, S_IFBLK: "a device"
        default: "a special file"
        }
    }
}
