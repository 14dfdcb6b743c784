//! A guest's screen as a PNG: as it is, or averaged down to a thumbnail.

use vmm_core::backend::display::{BYTES_PER_PIXEL, Mode};

use crate::control::Screenshot;

/// Makes a PNG of XRGB8888 rows, no wider than `max_width`.
///
/// # Errors
/// A sentence, when the picture is none.
pub fn png(mode: Mode, pixels: &[u8], max_width: Option<u32>) -> Result<Screenshot, String> {
    let bytes = mode.width as usize * mode.height as usize * BYTES_PER_PIXEL;
    if bytes == 0 || pixels.len() < bytes {
        return Err("the screen is empty".into());
    }
    let (width, height) = fit(mode, max_width);
    let rgb = if (width, height) == (mode.width, mode.height) {
        pixels[..bytes].chunks_exact(BYTES_PER_PIXEL).flat_map(|p| [p[2], p[1], p[0]]).collect()
    } else {
        shrink(mode, pixels, width, height)
    };
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&rgb)?;
        writer.finish()
    });
    written.map_err(|error| format!("could not make a PNG of the screen: {error}"))?;
    Ok(Screenshot { width, height, png })
}

/// The size with the mode's shape that is no wider than `max_width`.
fn fit(mode: Mode, max_width: Option<u32>) -> (u32, u32) {
    let width = max_width.unwrap_or(mode.width).clamp(1, mode.width);
    let height = u64::from(mode.height) * u64::from(width) / u64::from(mode.width);
    (width, u32::try_from(height).unwrap_or(mode.height).max(1))
}

/// Averages the source pixels that fall on each pixel of the smaller picture.
fn shrink(mode: Mode, pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
    let span = |i: u32, to: u32, from: u32| {
        let edge = |i: u32| (u64::from(i) * u64::from(from) / u64::from(to)) as usize;
        edge(i)..edge(i + 1).max(edge(i) + 1)
    };
    let row = mode.width as usize * BYTES_PER_PIXEL;
    let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            let mut sums = [0u32; 3];
            let mut count = 0;
            for source in span(y, height, mode.height).map(|y| &pixels[y * row..][..row]) {
                for x in span(x, width, mode.width) {
                    let pixel = &source[x * BYTES_PER_PIXEL..][..3];
                    for (sum, channel) in sums.iter_mut().zip(pixel) {
                        *sum += u32::from(*channel);
                    }
                    count += 1;
                }
            }
            rgb.extend(sums.iter().rev().map(|sum| (sum / count) as u8));
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(shot: &Screenshot) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(&shot.png)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        (info.width, info.height, rgb)
    }

    #[test]
    fn a_screenshot_has_every_pixel_in_its_colour() {
        let pixels: Vec<u8> = [[1, 2, 3, 255], [4, 5, 6, 0]].concat();
        let shot = png(Mode { width: 2, height: 1 }, &pixels, None).unwrap();
        assert_eq!(decode(&shot), (2, 1, vec![3, 2, 1, 6, 5, 4]));
    }

    #[test]
    fn a_thumbnail_averages_and_keeps_its_shape() {
        let mode = Mode { width: 4, height: 2 };
        let pixels: Vec<u8> = (0..8u8).flat_map(|i| [i * 10, 0, 100, 0]).collect();
        let shot = png(mode, &pixels, Some(2)).unwrap();
        assert_eq!(decode(&shot), (2, 1, vec![100, 0, 25, 100, 0, 45]));
        let wide = png(mode, &pixels, Some(400)).unwrap();
        assert_eq!((wide.width, wide.height), (4, 2));
        let thin = png(Mode { width: 8, height: 1 }, &pixels, Some(1)).unwrap();
        assert_eq!((thin.width, thin.height), (1, 1));
    }

    #[test]
    fn a_screen_that_is_off_or_short_is_refused() {
        assert!(png(Mode { width: 0, height: 0 }, &[], None).is_err());
        assert!(png(Mode { width: 2, height: 2 }, &[0; 15], None).is_err());
        assert_eq!(png(Mode { width: 2, height: 2 }, &[0; 16], Some(0)).unwrap().width, 1);
    }
}
