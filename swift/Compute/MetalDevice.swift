#if canImport(Metal)
import GPUSources
import Metal
import ObjectiveC

/// An Apple GPU. Memory is unified: weights stay in the file's mapping, and addresses are the CPU's; each
/// belongs to one of `regions`.
///
/// Kernels reach some memory through tables of addresses, which Metal neither makes resident nor orders by
/// itself. Hence one residency set with everything in it; barriers between commands that do not overlap;
/// and a fence from each encoder to the next.
public final class MetalDevice: GPUDevice {
    public let name = "metal"
    public let isUnified = true

    private let device: any MTLDevice
    private let queue: any MTLCommandQueue
    private let pipelines: [(any MTLComputePipelineState)?]
    private let residency: any MTLResidencySet
    /// Buffers by the CPU's address, ascending, without overlap but at page borders.
    private var regions: [(start: UInt, end: UInt, buffer: any MTLBuffer)] = []
    private let fence: any MTLFence
    /// Bound where a kernel has a buffer that it will not look at.
    private let nothing: any MTLBuffer
    /// Started, and not known to have ended.
    private var pending: [any MTLCommandBuffer] = []
    /// A queue holds 64; fewer keep the CPU from running far ahead.
    private static let mostPending = 32
    private static let pageByteCount = 16384
    private static let simdWidth = 32

    public var model: String { device.name }

    public var availableByteCount: Int {
        max(0, Int(device.recommendedMaxWorkingSetSize) - device.currentAllocatedSize)
    }

    /// - Throws: `ComputeError.device`: no GPU, or its compiler refuses the kernels.
    public init() throws {
        guard let device = MTLCreateSystemDefaultDevice(), let queue = device.makeCommandQueue() else {
            throw ComputeError.device("backend 'metal': this Mac has no GPU that Metal can use")
        }
        guard device.hasUnifiedMemory, device.supportsFamily(.metal3), let fence = device.makeFence(),
              let nothing = device.makeBuffer(length: 16, options: .storageModeShared) else {
            throw ComputeError.device("backend 'metal': \(device.name) is not an Apple GPU with Metal 3 (M1 or newer)")
        }
        self.fence = fence
        self.nothing = nothing
        self.device = device
        self.queue = queue
        let options = MTLCompileOptions()
        // Maxima start at finite numbers, but NaN must stay NaN.
        options.mathMode = .safe
        do {
            let library = try device.makeLibrary(source: String(cString: gpu_source_metal_text()), options: options)
            pipelines = try GPUKernel.allCases.map { kernel in
                guard !kernel.isForOwnMemory else { return nil }
                guard let function = library.makeFunction(name: kernel.name) else {
                    throw ComputeError.device("backend 'metal': kernel \(kernel.name) is missing")
                }
                let pipeline = try device.makeComputePipelineState(function: function)
                guard pipeline.maxTotalThreadsPerThreadgroup >= kernel.threads else {
                    throw ComputeError.device(
                        "backend 'metal': \(device.name) runs kernel \(kernel.name) with at most "
                            + "\(pipeline.maxTotalThreadsPerThreadgroup) threads; it needs \(kernel.threads)")
                }
                guard pipeline.threadExecutionWidth == Self.simdWidth else {
                    throw ComputeError.device(
                        "backend 'metal': \(device.name) has simdgroups of \(pipeline.threadExecutionWidth) threads; "
                            + "the kernels need \(Self.simdWidth)")
                }
                return pipeline
            }
            residency = try device.makeResidencySet(descriptor: MTLResidencySetDescriptor())
        } catch let error as ComputeError {
            throw error
        } catch {
            throw ComputeError.device("backend 'metal': \(error)")
        }
        queue.addResidencySet(residency)
    }

    // MARK: Memory

    public func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer {
        guard let buffer = device.makeBuffer(length: max(byteCount, 16), options: .storageModeShared) else {
            throw ComputeError.outOfMemory(byteCount: byteCount)
        }
        add(buffer, start: UInt(bitPattern: buffer.contents()), byteCount: buffer.length)
        return buffer.contents()
    }

    public func free(_ address: UnsafeMutableRawPointer) {
        guard let index = regions.firstIndex(where: { $0.start == UInt(bitPattern: address) }) else { return }
        residency.removeAllocation(regions[index].buffer)
        residency.commit()
        regions.remove(at: index)
    }

    /// The pages around the bytes, without a copy.
    public func adopt(_ address: UnsafeRawPointer, byteCount: Int) throws {
        let page = UInt(Self.pageByteCount), begin = UInt(bitPattern: address)
        let start = begin / page * page, end = (begin + UInt(byteCount) + page - 1) / page * page
        if let known = find(begin), begin + UInt(byteCount) <= known.end { return }
        guard let buffer = device.makeBuffer(
            bytesNoCopy: UnsafeMutableRawPointer(bitPattern: start)!, length: Int(end - start),
            options: .storageModeShared, deallocator: nil) else {
            throw ComputeError.device("backend 'metal': \(byteCount >> 20) MiB of weights cannot be mapped for the GPU")
        }
        // The bytes themselves decide where a region begins: tensors share pages.
        add(buffer, start: start, byteCount: Int(end - start), from: begin)
    }

    private func add(_ buffer: any MTLBuffer, start: UInt, byteCount: Int, from: UInt? = nil) {
        let key = from ?? start
        let place = regions.firstIndex { $0.start > key } ?? regions.count
        regions.insert((key, start + UInt(byteCount), buffer), at: place)
        residency.addAllocation(buffer)
        residency.commit()
        // Now, rather than when the first command needs it.
        residency.requestResidency()
    }

    /// The last region that begins at or before `address`.
    private func find(_ address: UInt) -> (start: UInt, end: UInt, buffer: any MTLBuffer)? {
        var low = 0, high = regions.count
        while low < high {
            let middle = (low + high) / 2
            if regions[middle].start <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0, address < regions[low - 1].end else { return nil }
        return regions[low - 1]
    }

    /// - Returns: The buffer that holds `address`, and where in it.
    private func place(_ address: UInt) -> (buffer: any MTLBuffer, offset: Int) {
        guard let region = find(address) else { preconditionFailure("address \(address) belongs to no buffer") }
        return (region.buffer, Int(address - UInt(bitPattern: region.buffer.contents())))
    }

    public func kernelAddress(_ address: UnsafeRawPointer) -> UInt64 {
        let (buffer, offset) = place(UInt(bitPattern: address))
        return buffer.gpuAddress + UInt64(offset)
    }

    // MARK: Commands

    public func run(_ commands: GPUCommands) throws {
        if pending.count >= Self.mostPending { try finish(pending.removeFirst()) }
        // Encoders are released with the pool: threads of ours have no other.
        try autoreleasepool {
            guard let buffer = queue.makeCommandBuffer() else { throw ComputeError.device("backend 'metal': no command buffer") }
            try encode(commands, into: buffer)
            buffer.commit()
            pending.append(buffer)
        }
    }

    private func encode(_ commands: GPUCommands, into buffer: any MTLCommandBuffer) throws {
        var compute: (any MTLComputeCommandEncoder)?, blit: (any MTLBlitCommandEncoder)?
        func end() {
            compute?.updateFence(fence)
            compute?.endEncoding()
            blit?.updateFence(fence)
            blit?.endEncoding()
            (compute, blit) = (nil, nil)
        }
        func computing() throws -> any MTLComputeCommandEncoder {
            if let compute { return compute }
            end()
            guard let encoder = buffer.makeComputeCommandEncoder(dispatchType: .concurrent) else { throw Self.noEncoder }
            encoder.waitForFence(fence)
            compute = encoder
            return encoder
        }
        func copying() throws -> any MTLBlitCommandEncoder {
            if let blit { return blit }
            end()
            guard let encoder = buffer.makeBlitCommandEncoder() else { throw Self.noEncoder }
            encoder.waitForFence(fence)
            blit = encoder
            return encoder
        }
        defer { end() }
        try commands.forEach { command in
            switch command {
            case let .dispatch(kernel, grid, buffers, arguments, overlaps):
                let encoder = try computing()
                if !overlaps { encoder.memoryBarrier(scope: .buffers) }
                encode(kernel, grid, buffers, arguments, encoder)
            case let .copy(source, target, byteCount):
                let from = place(source), to = place(target)
                try copying().copy(from: from.buffer, sourceOffset: from.offset, to: to.buffer,
                                   destinationOffset: to.offset, size: byteCount)
            case let .clear(target, byteCount):
                let to = place(target)
                try copying().fill(buffer: to.buffer, range: to.offset..<to.offset + byteCount, value: 0)
            }
        }
    }

    private static let noEncoder = ComputeError.device("backend 'metal': no command encoder")

    private func encode(_ kernel: GPUKernel, _ grid: (Int, Int, Int), _ buffers: UnsafeBufferPointer<UInt64>,
                        _ arguments: UnsafeRawBufferPointer, _ encoder: any MTLComputeCommandEncoder) {
        encoder.setComputePipelineState(pipelines[kernel.rawValue]!)
        for (index, address) in buffers.enumerated() {
            let (buffer, offset) = address == 0 ? (nothing, 0) : place(UInt(address))
            encoder.setBuffer(buffer, offset: offset, index: index)
        }
        encoder.setBytes(arguments.baseAddress!, length: arguments.count, index: buffers.count)
        encoder.dispatchThreadgroups(MTLSize(width: grid.0, height: grid.1, depth: grid.2),
                                     threadsPerThreadgroup: MTLSize(width: kernel.threads, height: 1, depth: 1))
    }

    public func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) throws {
        try wait()
        target.copyMemory(from: host, byteCount: byteCount)
    }

    public func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) throws {
        try wait()
        host.copyMemory(from: source, byteCount: byteCount)
    }

    public func wait() throws {
        defer { pending.removeAll() }
        for buffer in pending { try finish(buffer) }
    }

    private func finish(_ buffer: any MTLCommandBuffer) throws {
        buffer.waitUntilCompleted()
        if let error = buffer.error { throw ComputeError.device("backend 'metal': \(error)") }
    }
}
#endif
