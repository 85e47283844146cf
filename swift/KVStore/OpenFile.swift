#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// What the file system refused: the call, the file and why.
public struct StoreError: Error, CustomStringConvertible {
    public let operation: String
    public let path: String
    public let code: Int32

    init(_ operation: String, _ path: String, code: Int32 = errno) {
        self.operation = operation
        self.path = path
        self.code = code
    }

    public var description: String { "\(operation) \(path): \(String(cString: strerror(code)))" }
}

/// A file descriptor, closed when let go.
final class OpenFile {
    let path: String
    private let descriptor: Int32

    /// For reading. Links are not followed.
    init(reading path: String) throws {
        self.path = path
        descriptor = Self.retrying { open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) }
        if descriptor < 0 { throw StoreError("open", path) }
    }

    /// A new file that only its owner may read.
    init(creating path: String) throws {
        self.path = path
        descriptor = Self.retrying { open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600) }
        if descriptor < 0 { throw StoreError("create", path) }
        // Whatever the umask: nobody else's, and not less than the owner needs.
        fchmod(descriptor, 0o600)
        // Tells other processes that its writer lives; ends with the descriptor, however the process ends.
        _ = flock(descriptor, LOCK_EX | LOCK_NB)
    }

    /// For reading and writing, made when missing.
    init(updating path: String) throws {
        self.path = path
        descriptor = Self.retrying { open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600) }
        if descriptor < 0 { throw StoreError("open", path) }
    }

    deinit { close(descriptor) }

    /// Waits for its lock; kept until the file is closed.
    func lock() { _ = Self.retrying { flock(descriptor, LOCK_EX) } }
    /// Whether nobody else holds its lock.
    func tryLock() -> Bool { flock(descriptor, LOCK_EX | LOCK_NB) == 0 }

    func byteCount() throws -> Int {
        var info = stat()
        guard fstat(descriptor, &info) == 0 else { throw StoreError("stat", path) }
        return Int(info.st_size)
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// - Returns: false when the file is shorter.
    func read(into bytes: UnsafeMutableRawBufferPointer, at offset: Int) throws -> Bool {
        var done = 0
        while done < bytes.count {
            let n = pread(descriptor, bytes.baseAddress! + done, bytes.count - done, off_t(offset + done))
            if n == 0 { return false }
            if n < 0 {
                if errno == EINTR { continue }
                throw StoreError("read", path)
            }
            done += n
        }
        return true
    }

    func append(_ bytes: UnsafeRawBufferPointer) throws {
        var done = 0
        while done < bytes.count {
            let n = write(descriptor, bytes.baseAddress! + done, bytes.count - done)
            if n < 0 {
                if errno == EINTR { continue }
                throw StoreError("write", path)
            }
            done += n
        }
    }

    func overwrite(_ bytes: UnsafeRawBufferPointer) throws {
        guard pwrite(descriptor, bytes.baseAddress!, bytes.count, 0) == bytes.count else { throw StoreError("write", path) }
    }

    /// Waits until its bytes would survive a power cut.
    func sync() throws {
        guard fsync(descriptor) == 0 else { throw StoreError("fsync", path) }
    }

    private static func retrying(_ call: () -> Int32) -> Int32 {
        while true {
            let result = call()
            if result >= 0 || errno != EINTR { return result }
        }
    }
}

/// Calls on names.
enum Files {
    /// Directories up to and including `path`, which only its owner may enter; an existing one is left as it is.
    static func makeDirectory(_ path: String) throws {
        if mkdir(path, 0o700) == 0 {
            chmod(path, 0o700)
            return
        }
        if errno == EEXIST { return }
        let code = errno
        guard code == ENOENT, let slash = path.lastIndex(of: "/"), slash != path.startIndex else {
            throw StoreError("mkdir", path, code: code)
        }
        try makeDirectory(String(path[..<slash]))
        if mkdir(path, 0o700) != 0, errno != EEXIST { throw StoreError("mkdir", path) }
    }

    /// Names in a directory, without "." and ".."; none when it cannot be read.
    static func names(in path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    struct Info {
        let byteCount: Int
        /// Last change, nanoseconds since 1970.
        let changed: Int64
        let isDirectory: Bool
    }

    static func info(_ path: String) -> Info? {
        var info = stat()
        guard lstat(path, &info) == 0 else { return nil }
        #if canImport(Glibc)
        let time = info.st_mtim
        #else
        let time = info.st_mtimespec
        #endif
        // A time that no clock can have (from 2106 on) is that of a long unused file.
        let seconds = (0...Int(UInt32.max)).contains(time.tv_sec) ? Int64(time.tv_sec) : 0
        return Info(byteCount: Int(info.st_size), changed: seconds * 1_000_000_000 + Int64(time.tv_nsec),
                    isDirectory: info.st_mode & S_IFMT == S_IFDIR)
    }

    /// Sets a file's time; that it may fail (a read-only directory) costs only the order of eviction.
    static func touch(_ path: String, _ nanoseconds: Int64) {
        let time = timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
        let times = [time, time]
        _ = utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW)
    }

    /// Whether the name is gone, by this call or before.
    @discardableResult static func remove(_ path: String) -> Bool { unlink(path) == 0 || errno == ENOENT }

    static func rename(_ old: String, to new: String) throws {
        #if canImport(Glibc)
        let result = Glibc.rename(old, new)
        #else
        let result = Darwin.rename(old, new)
        #endif
        if result != 0 { throw StoreError("rename", old) }
    }

    /// Makes new names in a directory survive a power cut.
    static func syncDirectory(_ path: String) {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        _ = fsync(descriptor)
        close(descriptor)
    }

    /// Bytes that the file system has free for this user.
    static func freeBytes(_ path: String) -> Int {
        var info = statvfs()
        guard statvfs(path, &info) == 0 else { return .max }
        return Int(clamping: UInt64(info.f_bavail) * UInt64(info.f_frsize))
    }

    static func nowNanoseconds() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}

/// A lock around what its owner says it guards.
final class StoreLock: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    init() {
        mutex = .allocate(capacity: 1)
        condition = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(condition, nil)
    }

    deinit {
        pthread_mutex_destroy(mutex)
        pthread_cond_destroy(condition)
        mutex.deallocate()
        condition.deallocate()
    }

    func withLock<R>(_ body: () throws -> R) rethrows -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body()
    }

    /// Inside `withLock`: lets others in until one of them calls `wake`.
    func wait() { pthread_cond_wait(condition, mutex) }
    func wake() { pthread_cond_broadcast(condition) }
}
