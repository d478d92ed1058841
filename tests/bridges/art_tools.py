"""Run ART's trainers, patches, defences and metrics on a class of ours: `python -m tests.bridges.art_tools pytorch`.

Prints what became of each, as JSON. A process of its own, since importing ART changes what our classes are made from.
"""

import contextlib
import io
import json
import sys
import warnings

import numpy as np

from tests.bridges.art_attacks import FRAMEWORKS


def data(shape, number=12):
    rng = np.random.default_rng(0)
    return rng.uniform(size=(number, *shape)).astype(np.float32), np.eye(3, dtype=np.float32)[np.arange(number) % 3]


def tools(make, package, shape):  # noqa: C901 (a table)
    """Name -> function that runs a tool on a classifier of ours."""
    from art import metrics
    from art.attacks import evasion, poisoning
    from art.data_generators import NumpyDataGenerator
    from art.defences import detector, postprocessor, preprocessor, trainer, transformer
    from art.evaluations.security_curve import SecurityCurve

    x, y = data(shape)

    def small(classifier, steps=2):
        return evasion.ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.05, max_iter=steps, verbose=False)

    def trained(cls, *args, fit=None, **settings):
        def run():
            classifier = make()
            own = cls(classifier, *(arg(classifier) for arg in args), **settings)
            own.fit(x, y, **(fit or {"batch_size": 6, "nb_epochs": 1}))
            return own.predict(x) if hasattr(own, "predict") else classifier.predict(x)

        return run

    def defended(**defences):
        def run():
            classifier = make(**defences)
            classifier.certify(x, 20)
            classifier.predict(x)
            return classifier.fit(x, y, batch_size=6, nb_epochs=1)

        return run

    def strip():
        cleaned = transformer.poisoning.STRIP(make())()
        # ART's entropy of one-hot predictions is NaN, so that `mitigate` fails on its own smoothing class, too.
        cleaned.entropy_threshold, cleaned.validation_data = 0.0, x
        return cleaned.predict(x)

    def generated(kind):
        def run():
            classifier = make()
            generator = kind()
            for _ in range(2):
                classifier.fit_generator(generator, nb_epochs=2)

        return run

    def activation_defence():
        labels = y
        found = detector.poison.ActivationDefence(make(), x, labels)
        return found.detect_poison(nb_clusters=2, nb_dims=2, reduce="PCA")

    found = {
        "AdversarialTrainer": trained(trainer.AdversarialTrainer, lambda c: small(c)),
        "AdversarialTrainerMadryPGD": trained(
            trainer.AdversarialTrainerMadryPGD,
            fit={"nb_epochs": 1, "batch_size": 6},
            nb_epochs=1,
            batch_size=6,
            max_iter=1,
        ),
        "SecurityCurve": lambda: SecurityCurve(eps=[0.1]).evaluate(make(), x, y, max_iter=1, verbose=False),
        "STRIP": strip,
        "ActivationDefence": activation_defence,
        "NumpyDataGenerator": generated(lambda: NumpyDataGenerator(x, y, batch_size=6)),
        "empirical_robustness": lambda: metrics.empirical_robustness(make(), x, "fgsm", {"eps_step": 0.1, "eps": 1.0}),
        "loss_sensitivity": lambda: metrics.loss_sensitivity(make(), x, y),
        "FeatureSqueezing": defended(preprocessing_defences=preprocessor.FeatureSqueezing((0, 1))),
        "SpatialSmoothing": defended(
            preprocessing_defences=preprocessor.SpatialSmoothing(channels_first=shape[0] == 1, clip_values=(0, 1))
        ),
        "LabelSmoothing": defended(preprocessing_defences=preprocessor.LabelSmoothing()),
        "GaussianAugmentation": defended(
            preprocessing_defences=preprocessor.GaussianAugmentation(augmentation=False, apply_predict=True)
        ),
        "HighConfidence": defended(postprocessing_defences=postprocessor.HighConfidence(cutoff=0.1)),
        "GaussianNoise": defended(postprocessing_defences=postprocessor.GaussianNoise(scale=0.1)),
        "Rounded": defended(postprocessing_defences=postprocessor.Rounded(decimals=3)),
        "ReverseSigmoid": defended(postprocessing_defences=postprocessor.ReverseSigmoid()),
    }
    if package == "pytorch":
        import torch
        from art.data_generators import PyTorchDataGenerator

        def loader():
            pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y.argmax(1)))
            return PyTorchDataGenerator(torch.utils.data.DataLoader(pairs, 6), len(x), 6)

        found |= {
            "PyTorchDataGenerator": generated(loader),
            "AdversarialTrainerFBFPyTorch": trained(trainer.AdversarialTrainerFBFPyTorch, eps=0.1),
            "AdversarialTrainerTRADESPyTorch": trained(
                trainer.AdversarialTrainerTRADESPyTorch, lambda c: small(c), beta=1.0
            ),
            "FeatureAdversariesPyTorch": lambda: evasion.FeatureAdversariesPyTorch(
                make(), delta=0.2, layer=1, max_iter=3, step_size=0.1, batch_size=6, verbose=False
            ).generate(x, x[::-1].copy()),
            "HiddenTriggerBackdoorPyTorch": lambda: poisoning.HiddenTriggerBackdoor(
                make(), eps=0.1, target=y[0], source=y[1], feature_layer="1",
                backdoor=poisoning.PoisoningAttackBackdoor(lambda x: x), max_iter=1, batch_size=6, verbose=False,
            ).poison(x, y),
        }  # fmt: skip
    if package == "tensorflow":
        import tensorflow as tf
        from art.data_generators import TensorFlowV2DataGenerator

        found |= {
            "TensorFlowV2DataGenerator": generated(
                lambda: TensorFlowV2DataGenerator(tf.data.Dataset.from_tensor_slices((x, y)).batch(6), len(x), 6)
            ),
            "AdversarialPatchTensorFlowV2": lambda: evasion.AdversarialPatchTensorFlowV2(
                make(), rotation_max=0.0, scale_min=0.2, scale_max=0.3, patch_shape=shape, max_iter=1, verbose=False
            ).generate(x, y),
            "FeatureAdversariesTensorFlowV2": lambda: evasion.FeatureAdversariesTensorFlowV2(
                make(), delta=0.2, layer=1, max_iter=3, step_size=0.1, batch_size=6
            ).generate(x, x[::-1].copy()),
        }
    return found


def main():
    import art.estimators.certification.randomized_smoothing  # noqa: F401

    package = sys.argv[1]
    make = FRAMEWORKS[package]
    results = {}
    for name, run in tools(make, package, make.shape).items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                run()
            results[name] = "ran"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    print(json.dumps(results))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
