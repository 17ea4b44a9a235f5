//! Nearest neighbours.

use fauna_shared::{Error, Result};
use rayon::prelude::*;

use crate::space::Space;

/// The `k` items with the largest products with each item, without itself, sorted by their numbers.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if `k` is 0 or not below the number of items.
pub fn nearest(space: &Space, k: usize) -> Result<Vec<Vec<u32>>> {
    if k == 0 || k >= space.items() {
        return Err(Error::input(format!("{k} neighbours of each of {} vectors", space.items()))
            .hint("the number of neighbours is at least 1 and below the number of vectors"));
    }
    let mut found = Vec::with_capacity(space.items());
    space.each_block(|first, products| {
        let of_row = |row: usize| {
            let item = first + row;
            let mut others: Vec<u32> =
                (0..space.items() as u32).filter(|other| *other as usize != item).collect();
            // Of equal products, the first.
            others.select_nth_unstable_by(k - 1, |a, b| {
                products[(row, *b as usize)].total_cmp(&products[(row, *a as usize)]).then(a.cmp(b))
            });
            others.truncate(k);
            others.sort_unstable();
            others
        };
        found.par_extend((0..products.nrows()).into_par_iter().map(of_row));
    });
    Ok(found)
}

/// The numbers in two sorted lists.
pub fn common<'a>(a: &'a [u32], b: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    a.iter().copied().filter(|number| b.binary_search(number).is_ok())
}
