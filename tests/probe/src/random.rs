//! Test data that a host can compute as well: xorshift64 (Marsaglia, shifts 13, 7, 17).

use crate::dma::Dma;

/// A generator of test data: xorshift64.
pub struct XorShift(u64);

impl XorShift {
    /// Starts at a seed, which must not be zero.
    pub fn new(seed: u64) -> XorShift {
        XorShift(if seed == 0 { 1 } else { seed })
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Fills memory with numbers in little-endian order.
    pub fn fill(&mut self, memory: &Dma) {
        for bytes in memory.bytes_mut().as_chunks_mut::<8>().0 {
            *bytes = self.next().to_le_bytes();
        }
    }
}
