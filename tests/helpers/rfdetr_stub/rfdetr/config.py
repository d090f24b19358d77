"""The two classes of settings, with a few of their names."""


class Settings:
    model_fields: dict = {}

    def __init__(self, **values):
        unknown = sorted(set(values) - set(self.model_fields))
        if unknown:
            raise ValueError(f"Unknown parameter(s): {', '.join(unknown)}")
        if "lr" in values and not isinstance(values["lr"], float):
            raise ValueError("lr: Input should be a valid number")
        vars(self).update(values)


class ModelConfig(Settings):
    names = "resolution num_classes device pretrain_weights num_queries dec_layers group_detr num_select"
    model_fields = dict.fromkeys(names.split())


class TrainConfig(Settings):
    names = "dataset_dir dataset_file output_dir epochs batch_size resume seed lr num_workers tensorboard"
    model_fields = dict.fromkeys([*names.split(), "aug_config", "multi_scale", "expanded_scales"])


RFDETRNanoConfig = RFDETRSmallConfig = ModelConfig
