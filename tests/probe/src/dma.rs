//! Memory that devices may read and write: handed out once from the RAM behind the image, identity mapped.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = 4096;

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Sets the pool: everything from the end of the image to `end`.
pub fn init(end: u64) {
    NEXT.store(crate::memory::end_of_image().next_multiple_of(PAGE), Ordering::Relaxed);
    END.store(end, Ordering::Relaxed);
}

/// The part of the pool that was not handed out yet.
pub fn unused() -> core::ops::Range<u64> {
    NEXT.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)
}

/// A mark to return to with [`release`], so that a test's buffers serve the next test.
pub fn mark() -> u64 {
    NEXT.load(Ordering::Relaxed)
}

/// Takes back all that was handed out since `mark`. No device may use it any more.
pub fn release(mark: u64) {
    NEXT.store(mark, Ordering::Relaxed);
}

/// Page-aligned, zeroed memory. Accesses are volatile, so a device may change it at any time.
#[derive(Clone, Copy)]
pub struct Dma {
    address: u64,
    length: usize,
}

impl Dma {
    /// Hands out `length` bytes; a machine with too little memory ends the probe with a message.
    pub fn new(length: usize) -> Dma {
        let address = NEXT.load(Ordering::Relaxed);
        let next = address + (length as u64).next_multiple_of(PAGE);
        assert!(
            next <= END.load(Ordering::Relaxed),
            "the machine has too little memory for a buffer of {length} bytes"
        );
        NEXT.store(next, Ordering::Relaxed);
        // SAFETY: the range is RAM behind the image, mapped, and given to nobody else.
        unsafe { ptr::write_bytes(address as *mut u8, 0, length) };
        Dma { address, length }
    }

    /// Memory that [`release`] never takes back, from the other end of the pool.
    pub fn forever(length: usize) -> Dma {
        let bytes = (length as u64).next_multiple_of(PAGE);
        let address = END.load(Ordering::Relaxed).saturating_sub(bytes) & !(PAGE - 1);
        assert!(address >= NEXT.load(Ordering::Relaxed), "the machine has too little memory for {length} bytes");
        END.store(address, Ordering::Relaxed);
        // SAFETY: as in `new`.
        unsafe { ptr::write_bytes(address as *mut u8, 0, length) };
        Dma { address, length }
    }

    /// Physical address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// A part of it.
    pub fn part(&self, offset: usize, length: usize) -> Dma {
        assert!(offset <= self.length && length <= self.length - offset, "a part outside of its buffer");
        Dma { address: self.address + offset as u64, length }
    }

    /// Reads a plain value at a byte offset.
    pub fn read<T: Copy>(&self, offset: usize) -> T {
        let part = self.part(offset, size_of::<T>());
        // SAFETY: inside the buffer; every T used is plain data, valid for any bytes.
        unsafe { ptr::read_volatile(part.address as *const T) }
    }

    /// Writes a plain value at a byte offset.
    pub fn write<T: Copy>(&self, offset: usize, value: T) {
        let part = self.part(offset, size_of::<T>());
        // SAFETY: inside the buffer.
        unsafe { ptr::write_volatile(part.address as *mut T, value) };
    }

    /// Copies bytes in.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        let part = self.part(offset, bytes.len());
        // SAFETY: inside the buffer, which no Rust reference points into.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), part.address as *mut u8, bytes.len()) };
    }

    /// Fills all of it with one byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the whole buffer.
        unsafe { ptr::write_bytes(self.address as *mut u8, byte, self.length) };
    }

    /// The bytes, for as long as no device writes them.
    pub fn bytes(&self) -> &[u8] {
        crate::cpu::fence();
        // SAFETY: inside RAM; callers look only when the device has completed its request.
        unsafe { core::slice::from_raw_parts(self.address as *const u8, self.length) }
    }

    /// The pixels or words, for as long as no device writes them and nobody else holds them.
    #[allow(clippy::mut_from_ref)]
    pub fn words_mut(&self) -> &mut [u32] {
        // SAFETY: page-aligned and inside RAM; callers hold one such slice at a time.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u32, self.length / 4) }
    }

    /// The bytes, writable, under the same conditions.
    #[allow(clippy::mut_from_ref)]
    pub fn bytes_mut(&self) -> &mut [u8] {
        // SAFETY: inside RAM; callers hold one such slice at a time.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u8, self.length) }
    }
}

/// Device registers in memory space, identity mapped.
#[derive(Clone, Copy)]
pub struct Mmio {
    address: u64,
    length: u64,
}

macro_rules! register {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads the register at `offset`.
        pub fn $read(&self, offset: u64) -> $type {
            assert!(offset + size_of::<$type>() as u64 <= self.length, "a register outside of its window");
            // SAFETY: inside the window, which the probe owns as it owns the machine.
            unsafe { ptr::read_volatile((self.address + offset) as *const $type) }
        }

        /// Writes the register at `offset`.
        pub fn $write(&self, offset: u64, value: $type) {
            assert!(offset + size_of::<$type>() as u64 <= self.length, "a register outside of its window");
            crate::cpu::fence();
            // SAFETY: inside the window.
            unsafe { ptr::write_volatile((self.address + offset) as *mut $type, value) };
        }
    };
}

impl Mmio {
    /// A window of registers; none if the address can't be mapped.
    pub fn at(address: u64, length: u64) -> Option<Mmio> {
        crate::memory::map(address, length).then_some(Mmio { address, length })
    }

    /// A part of the window, if it is inside.
    pub fn part(&self, offset: u64, length: u64) -> Option<Mmio> {
        let end = offset.checked_add(length)?;
        (end <= self.length).then_some(Mmio { address: self.address + offset, length })
    }

    /// Physical address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Copies words into memory behind the window: frame buffers, not registers.
    pub fn copy_words(&self, offset: u64, words: &[u32]) {
        assert!(offset + size_of_val(words) as u64 <= self.length, "a copy outside of its window");
        // SAFETY: inside the window.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), (self.address + offset) as *mut u32, words.len()) };
    }

    register!(read8, write8, u8);
    register!(read16, write16, u16);
    register!(read32, write32, u32);
}
