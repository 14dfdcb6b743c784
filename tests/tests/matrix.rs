//! The quick rows of the boot matrix.

use anyhow::Result;
use orangery_tests::matrix::{TABLE, run};

#[test]
fn the_quick_rows_of_the_boot_matrix_start() -> Result<()> {
    let folder = orangery_tests::artifacts()?.join("matrix");
    run(TABLE.iter().filter(|row| row.quick), &folder)
}
