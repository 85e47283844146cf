// Metal.swift — the part of Apple's Metal that MetalDevice.swift uses, with the names and types that
// Swift gives it on macOS 15, and no bodies: enough to type-check that file where there is no Mac.

public struct MTLSize {
    public var width: Int
    public var height: Int
    public var depth: Int
    public init(width: Int, height: Int, depth: Int) {
        self.width = width
        self.height = height
        self.depth = depth
    }
}

public struct MTLResourceOptions: OptionSet, Sendable {
    public let rawValue: UInt
    public init(rawValue: UInt) { self.rawValue = rawValue }
    public static var storageModeShared: MTLResourceOptions { MTLResourceOptions(rawValue: 0) }
}

public enum MTLMathMode: Int, Sendable { case safe = 0, relaxed = 1, fast = 2 }

public class MTLCompileOptions {
    public init() {}
    public var mathMode: MTLMathMode = .fast
}

public protocol MTLAllocation: AnyObject {
    var allocatedSize: Int { get }
}

public protocol MTLResource: MTLAllocation {}

public protocol MTLBuffer: MTLResource {
    var length: Int { get }
    var gpuAddress: UInt64 { get }
    func contents() -> UnsafeMutableRawPointer
}

public protocol MTLFunction: AnyObject {}

public protocol MTLLibrary: AnyObject {
    func makeFunction(name: String) -> (any MTLFunction)?
}

public protocol MTLComputePipelineState: AnyObject {
    var maxTotalThreadsPerThreadgroup: Int { get }
    var threadExecutionWidth: Int { get }
}

public protocol MTLFence: AnyObject {}

public enum MTLDispatchType: UInt, Sendable { case serial = 0, concurrent = 1 }

public struct MTLBarrierScope: OptionSet, Sendable {
    public let rawValue: UInt
    public init(rawValue: UInt) { self.rawValue = rawValue }
    public static var buffers: MTLBarrierScope { MTLBarrierScope(rawValue: 1) }
}

public enum MTLGPUFamily: Int, Sendable { case metal3 = 5001 }

public protocol MTLCommandEncoder: AnyObject {
    func endEncoding()
}

public protocol MTLComputeCommandEncoder: MTLCommandEncoder {
    func setComputePipelineState(_ state: any MTLComputePipelineState)
    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int)
    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int)
    func memoryBarrier(scope: MTLBarrierScope)
    func updateFence(_ fence: any MTLFence)
    func waitForFence(_ fence: any MTLFence)
    func dispatchThreadgroups(_ threadgroupsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize)
}

public protocol MTLBlitCommandEncoder: MTLCommandEncoder {
    func copy(from sourceBuffer: any MTLBuffer, sourceOffset: Int, to destinationBuffer: any MTLBuffer,
              destinationOffset: Int, size: Int)
    func updateFence(_ fence: any MTLFence)
    func waitForFence(_ fence: any MTLFence)
    func fill(buffer: any MTLBuffer, range: Range<Int>, value: UInt8)
}

public protocol MTLCommandBuffer: AnyObject {
    func makeComputeCommandEncoder(dispatchType: MTLDispatchType) -> (any MTLComputeCommandEncoder)?
    func makeBlitCommandEncoder() -> (any MTLBlitCommandEncoder)?
    func commit()
    func waitUntilCompleted()
    var error: (any Error)? { get }
}

public class MTLResidencySetDescriptor {
    public init() {}
}

public protocol MTLResidencySet: AnyObject {
    func addAllocation(_ allocation: any MTLAllocation)
    func removeAllocation(_ allocation: any MTLAllocation)
    func commit()
    func requestResidency()
}

public protocol MTLCommandQueue: AnyObject {
    func makeCommandBuffer() -> (any MTLCommandBuffer)?
    func addResidencySet(_ residencySet: any MTLResidencySet)
}

public protocol MTLDevice: AnyObject {
    var name: String { get }
    var recommendedMaxWorkingSetSize: UInt64 { get }
    var hasUnifiedMemory: Bool { get }
    func supportsFamily(_ gpuFamily: MTLGPUFamily) -> Bool
    func makeFence() -> (any MTLFence)?
    var currentAllocatedSize: Int { get }
    func makeCommandQueue() -> (any MTLCommandQueue)?
    func makeBuffer(length: Int, options: MTLResourceOptions) -> (any MTLBuffer)?
    func makeBuffer(bytesNoCopy pointer: UnsafeMutableRawPointer, length: Int, options: MTLResourceOptions,
                    deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?) -> (any MTLBuffer)?
    func makeLibrary(source: String, options: MTLCompileOptions?) throws -> any MTLLibrary
    func makeComputePipelineState(function computeFunction: any MTLFunction) throws -> any MTLComputePipelineState
    func makeResidencySet(descriptor: MTLResidencySetDescriptor) throws -> any MTLResidencySet
}

public func MTLCreateSystemDefaultDevice() -> (any MTLDevice)? { nil }
