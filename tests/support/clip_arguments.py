"""The arguments that each pipeline of diffusers 0.42.1 takes, in their order."""

ARGUMENTS = {
    name: arguments.split()
    for name, arguments in {
        "WanImageToVideoPipeline": """
        image prompt negative_prompt height width num_frames num_inference_steps guidance_scale guidance_scale_2
        num_videos_per_prompt generator latents prompt_embeds negative_prompt_embeds image_embeds last_image
        output_type return_dict attention_kwargs callback_on_step_end callback_on_step_end_tensor_inputs
        max_sequence_length
    """,
        "WanVACEPipeline": """
        prompt negative_prompt video mask reference_images conditioning_scale height width num_frames
        num_inference_steps guidance_scale guidance_scale_2 num_videos_per_prompt generator latents prompt_embeds
        negative_prompt_embeds output_type return_dict attention_kwargs callback_on_step_end
        callback_on_step_end_tensor_inputs max_sequence_length
    """,
        "LTXImageToVideoPipeline": """
        image prompt negative_prompt height width num_frames frame_rate num_inference_steps timesteps guidance_scale
        guidance_rescale num_videos_per_prompt generator latents prompt_embeds prompt_attention_mask
        negative_prompt_embeds negative_prompt_attention_mask decode_timestep decode_noise_scale output_type
        return_dict attention_kwargs callback_on_step_end callback_on_step_end_tensor_inputs max_sequence_length
    """,
        "LTXConditionPipeline": """
        conditions image video frame_index strength denoise_strength prompt negative_prompt height width num_frames
        frame_rate num_inference_steps timesteps guidance_scale guidance_rescale image_cond_noise_scale
        num_videos_per_prompt generator latents prompt_embeds prompt_attention_mask negative_prompt_embeds
        negative_prompt_attention_mask decode_timestep decode_noise_scale output_type return_dict attention_kwargs
        callback_on_step_end callback_on_step_end_tensor_inputs max_sequence_length
    """,
        "CogVideoXImageToVideoPipeline": """
        image prompt negative_prompt height width num_frames num_inference_steps timesteps guidance_scale
        use_dynamic_cfg num_videos_per_prompt eta generator latents prompt_embeds negative_prompt_embeds output_type
        return_dict attention_kwargs callback_on_step_end callback_on_step_end_tensor_inputs max_sequence_length
    """,
        "StableVideoDiffusionPipeline": """
        image height width num_frames num_inference_steps sigmas min_guidance_scale max_guidance_scale fps
        motion_bucket_id noise_aug_strength decode_chunk_size num_videos_per_prompt generator latents output_type
        callback_on_step_end callback_on_step_end_tensor_inputs return_dict
    """,
    }.items()
}
