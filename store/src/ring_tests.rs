//! In a file of their own: `tests/interleavings` compiles the ring itself with other primitives.

use crate::ring::{CHUNK, Ring};

fn read(ring: &Ring, from: u64, to: u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    ring.cursor()
        .read(from, to, |piece| out.extend_from_slice(piece))
        .then_some(out)
}

#[test]
fn bytes_come_back_across_chunks_until_they_are_pushed_out() {
    let start = 3 * CHUNK as u64 - 10;
    let (ring, mut tail) = Ring::new(2 * CHUNK, start);
    ring.push(&mut tail, b"0123456789abcdef");
    assert_eq!(read(&ring, start, start + 16).unwrap(), b"0123456789abcdef");
    assert_eq!(read(&ring, start + 8, start + 12).unwrap(), b"89ab");
    assert_eq!(read(&ring, start, start + 17), None);
    assert_eq!(read(&ring, start - 1, start + 1), None);
    let kept = ring.chunk_at(start).unwrap();
    ring.push(&mut tail, &vec![7; CHUNK]);
    assert_eq!(ring.oldest(), 3 * CHUNK as u64);
    assert_eq!(read(&ring, start, start + 4), None);
    assert_eq!(kept.slice(start, start + 4), b"0123");
    assert_eq!(read(&ring, start + 10, start + 16).unwrap(), b"abcdef");
    assert_eq!(tail.position, start + 16 + CHUNK as u64);
}

#[test]
fn what_is_cut_is_gone_and_what_stays_can_be_read_on() {
    let start = CHUNK as u64 - 8;
    let (ring, mut tail) = Ring::new(4 * CHUNK, start);
    ring.push(&mut tail, b"0123456789");
    let held = ring.chunk_at(start).unwrap();
    let mut tail = ring.cut(start + 4);
    assert_eq!(held.slice(start, start + 8), b"01234567", "as it was");
    ring.push(&mut tail, b"abcdef");
    assert_eq!(read(&ring, start, start + 10).unwrap(), b"0123abcdef");
    // At a chunk's border, and everything.
    let mut tail = ring.cut(CHUNK as u64);
    assert_eq!(read(&ring, start, start + 9), None);
    ring.push(&mut tail, b"xy");
    assert_eq!(read(&ring, start, start + 10).unwrap(), b"0123abcdxy");
    let tail = ring.cut(start);
    assert_eq!((tail.position, ring.oldest()), (start, start));
    assert_eq!(read(&ring, start, start + 1), None);
}
