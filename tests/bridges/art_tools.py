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


def readers(make, package, shape):
    """Name -> function that runs one of ART's detectors, extractions, inferences, poisonings or metrics."""
    from art import metrics
    from art.attacks import evasion, extraction, inference, poisoning
    from art.defences import detector, preprocessor, trainer

    x, y = data(shape, 24)
    backdoor = poisoning.PoisoningAttackBackdoor(lambda images: images)
    small = {"max_iter": 1, "max_eval": 10, "init_eval": 5, "init_size": 5, "verbose": False}

    def membership():
        attack = inference.membership_inference.MembershipInferenceBlackBox(make(), attack_model_type="rf")
        attack.fit(x[:12], y[:12], x[12:], y[12:])
        return attack.infer(x, y)

    def label_only():
        attack = inference.membership_inference.LabelOnlyDecisionBoundary(make())
        attack.calibrate_distance_threshold(x[:6], y[:6], x[6:12], y[6:12], **small)
        return attack.infer(x[:3], y[:3], **small)

    def stolen(kind, *labels, **settings):
        attack = kind(make(), batch_size_fit=12, batch_size_query=12, nb_epochs=1, nb_stolen=12, **settings)
        return attack.extract(x, *labels, thieved_classifier=make())

    found = {
        "MembershipInferenceBlackBox": membership,
        "LabelOnlyDecisionBoundary": label_only,
        "MembershipInferenceBlackBoxRuleBased": lambda: (
            inference.membership_inference.MembershipInferenceBlackBoxRuleBased(make()).infer(x, y)
        ),
        "MIFace": lambda: inference.model_inversion.MIFace(make(), max_iter=2, verbose=False).infer(
            None, np.array([0, 1])
        ),
        "CopycatCNN": lambda: stolen(extraction.CopycatCNN),
        "KnockoffNets": lambda: stolen(extraction.KnockoffNets, y, sampling_strategy="random", verbose=False),
        "SpectralSignatureDefense": lambda: detector.poison.SpectralSignatureDefense(
            make(), x, y, batch_size=12
        ).detect_poison(),
        "ProvenanceDefense": lambda: detector.poison.ProvenanceDefense(
            make(), x, y, np.eye(2)[np.arange(24) % 2], x[:6], y[:6], eps=0.1
        ).detect_poison(),
        "BinaryInputDetector": lambda: detector.evasion.BinaryInputDetector(make()).fit(x, y, batch_size=12),
        "BinaryActivationDetector": lambda: detector.evasion.BinaryActivationDetector(make(), make(), 1),
        "SubsetScanningDetector": lambda: detector.evasion.SubsetScanningDetector(make(), x, 1, verbose=False).scan(
            x[:6], x[6:9]
        ),
        "CleanLabelBackdoor": lambda: poisoning.PoisoningAttackCleanLabelBackdoor(
            backdoor, make(), target=y[0], eps=0.1, max_iter=2
        ).poison(x, y),
        "SHAPr": lambda: metrics.SHAPr(make(), x[:12], y[:12], x[12:], y[12:]),
        # Little noise, so that one prediction is as the next: the metric asks for both.
        "clever_u": lambda: metrics.clever_u(make(scale=1e-3), x[0], 2, 2, 1, 2, pool_factor=2, verbose=False),
    }
    if package != "flax":  # the metric names its classes
        found["PDTP"] = lambda: metrics.PDTP(make(), make(), x[:4], y[:4], num_iter=1)
    if package == "pytorch":
        from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

        poison = {"percent_poison": 0.3, "max_trials": 1, "max_epochs": 2, "clip_values": (0, 1), "epsilon": 0.1}
        poison |= {"batch_size": 12, "verbose": False}
        sleeper = {"indices_target": np.flatnonzero(y[:, 1]), "patching_strategy": "fixed", "retraining_factor": 1}
        sleeper |= {"selection_strategy": "max-norm", "patch": np.ones((shape[0], 2, 2), np.float32)}
        sleeper |= {"class_source": 0, "class_target": 1, "device_name": "cpu"}

        def adversarial_weights():
            attack = evasion.ProjectedGradientDescent(own := make(), eps=0.1, eps_step=0.05, max_iter=2, verbose=False)
            own = trainer.AdversarialTrainerAWPPyTorch(own, make(), attack, "PGD", gamma=0.01, beta=6.0, warmup=0)
            return own.fit(x, y, batch_size=12, nb_epochs=1)

        def several_processes():
            # dill, which moves the classifier, takes no optimizer of torch 2.13.
            classifier = make(optimizer=None, output="log_frequencies")
            settings = {"eps": 0.2, "max_iter": 2, "eps_step": 0.1, "verbose": False}
            attacks = [evasion.ProjectedGradientDescent(classifier, **settings)]
            return evasion.AutoAttack(classifier, attacks=attacks, parallel_pool_size=1).generate(x[:4], y[:4])

        found |= {
            "AdversarialTrainerAWPPyTorch": adversarial_weights,
            "DPInstaHideTrainer": lambda: trainer.DPInstaHideTrainer(
                make(), [preprocessor.MixupPyTorch(3)], clip_values=(0, 1)
            ).fit(x, y, batch_size=12, nb_epochs=1),
            "GradientMatchingAttack": lambda: poisoning.GradientMatchingAttack(make(), **poison).poison(
                x[:3], y[3:6], x, y
            ),
            "SleeperAgentAttack": lambda: poisoning.SleeperAgentAttack(
                make(preprocessing=StandardisationMeanStdPyTorch(0.1, 0.2)), **poison, **sleeper
            ).poison(x.copy(), y.copy(), x.copy(), y.copy(), x[:5].copy(), y[:5].copy()),
            "FeatureCollisionAttack": lambda: poisoning.FeatureCollisionAttack(
                make(), x[:1], 1, max_iter=2, verbose=False
            ).poison(x[3:4]),
            "BullseyePolytopeAttackPyTorch": lambda: poisoning.BullseyePolytopeAttackPyTorch(
                make(), x[:1], ["1"], max_iter=2, verbose=False
            ).poison(x[3:6], y[3:6]),
            "AutoAttack in processes": several_processes,
        }
    return found


def main():
    import art.estimators.certification.randomized_smoothing  # noqa: F401

    package = sys.argv[1]
    make = FRAMEWORKS[package]
    results = {}
    for name, run in {**tools(make, package, make.shape), **readers(make, package, make.shape)}.items():
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
