@testable import Compute
import Testing
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Compiled kernels between runs: only what was written whole is found again.
@Suite struct KernelCacheTests {
    private static let code: [UInt8] = (0..<1000).map { UInt8($0 % 251) }

    private func withCache(_ body: (KernelCache, String) throws -> Void) rethrows {
        var template = Array("/tmp/pyds4-kernel-cache-XXXXXX".utf8CString)
        let folder = String(cString: mkdtemp(&template)!)
        defer {
            removeFiles(in: "\(folder)/a")
            rmdir("\(folder)/a")
            rmdir(folder)
        }
        try body(KernelCache(directory: "\(folder)/a"), "\(folder)/a/b")
    }

    private func removeFiles(in folder: String) {
        guard let directory = opendir(folder) else { return }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: $0.pointee)) {
                    _ = unlink("\(folder)/\(String(cString: $0))")
                }
            }
        }
    }

    @Test func codeComesBack() {
        withCache { cache, _ in
            #expect(cache.read("b") == nil)
            #expect(!cache.holdsAny(prefix: "b"))
            cache.write(Self.code, "b")
            #expect(cache.read("b") == Self.code)
            #expect(cache.holdsAny(prefix: "b"))
        }
    }

    @Test(arguments: [0, 8, 16, 500, 1015])
    func changedByteMakesAFileUnknown(at offset: Int) throws {
        try withCache { cache, path in
            cache.write(Self.code, "b")
            let file = try #require(fopen(path, "r+b"))
            fseek(file, offset, SEEK_SET)
            let old = fgetc(file)
            fseek(file, offset, SEEK_SET)
            fputc(Int32(old ^ 1), file)
            fclose(file)
            #expect(cache.read("b") == nil)
            cache.write(Self.code, "b")
            #expect(cache.read("b") == Self.code)
        }
    }

    @Test(arguments: [0, 7, 16, 1015])
    func cutFileIsUnknown(to length: Int) {
        withCache { cache, path in
            cache.write(Self.code, "b")
            truncate(path, length)
            #expect(cache.read("b") == nil)
        }
    }

    @Test func everyKernelIsInOnePart() {
        #expect(CUDACompiler.parts.flatMap { $0 }.sorted { $0.rawValue < $1.rawValue } == GPUKernel.allCases)
    }

    @Test(.enabled(if: NVRTC() != nil, "NVIDIA's run-time compiler is not installed"))
    func partsCompileOnceAndAreThenKept() throws {
        try withCache { cache, _ in
            let first = try CUDACompiler.modules([[.copy_many]], architecture: "sm_90", types: 1, cache: cache)
            #expect(first[0].starts(with: [0x7f] + Array("ELF".utf8)))
            let again = try CUDACompiler.modules([[.copy_many]], architecture: "sm_90", types: 1, cache: cache)
            #expect(again == first)
            // What cannot be compiled is found only where it was kept.
            #expect(throws: ComputeError.self) {
                try CUDACompiler.modules([[.copy_many]], architecture: "sm_1", types: 1, cache: cache)
            }
        }
    }
}
