"""Predict a data set under Gaussian noise, with the flags of Cohen et al.'s predict.py, for a model of any framework.

Each input gets the class with most of N votes, or -1 where a two-sided binomial test of level alpha cannot tell it from
the next one. The same command goes on where it was ended. It prints the share that is right, wrong and abstained.
"""

from certify import as_key, make_parser, prepare

import jaxsmooth


def main(argv: list[str] | None = None) -> None:
    """Run the script."""
    parser = make_parser(__doc__, votes=1000)
    arguments = parser.parse_args(argv)
    noise = jaxsmooth.Gaussian(arguments.sigma)
    try:
        f, data, settings = prepare(arguments)
        key = as_key(arguments)
        rows = jaxsmooth.predict_dataset(f, noise, key, data, arguments.output, n=arguments.N, **settings)
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: ended; what is done is kept, and the same command goes on from there\n")
    if rows:
        right = sum(row.correct for row in rows) / len(rows)
        abstained = sum(row.predict == jaxsmooth.ABSTAIN for row in rows) / len(rows)
        print(f"{len(rows)} inputs: right {right:.3f}, wrong {1 - right - abstained:.3f}, abstained {abstained:.3f}")


if __name__ == "__main__":
    main()
